"""Put the statistics of a treatment into words.

Each control gives a standing. The baseline's decides, and a gain must also hold against the placebo:

    too few      fewer than 3 pairs, or seeds that change nothing
    equivalent   the equivalence test passes, whether or not the difference is significant
    better       Holm-adjusted p < alpha and the treatment is on the better side
    worse        Holm-adjusted p < alpha and it is on the other one
    open         none of these

Where seeds that solved their task are counted, p is of Fisher's one-sided test, so each of "better" and
"worse" has level alpha; nothing is equivalent then.

Equivalence takes precedence over significance: the margin is fixed in advance as what does not matter, and
with enough seeds any difference, however small, becomes significant. There are two exceptions. A gain that
meets the challenge's rule counts as a gain, however small it is in bits per byte. Runs so short that arms
cannot have diverged (see `jepa_lm.study.trained`) show no difference and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jepa_lm.study.power import ALPHA, MINIMUM_PAIRS, MOST_SEEDS
from jepa_lm.study.statistics import RULE_ALPHA, RULE_NATS, Effect, holm

Word = Literal[
    "helps",
    "better, no placebo",
    "hurts",
    "equivalent",
    "no difference shown",
    "too few seeds",
]
Standing = Literal["better", "worse", "equivalent", "open", "too few"]

BASELINES = {"weight_0": "weight 0", "none": "cross entropy alone", "control": "its control"}
"""Roles that can be the baseline, in order of preference, with their names in sentences."""
PLACEBO = "placebo"
EQUAL_FLOPS = "rival_equal_flops"
RIVALS = {"rival": "at equal steps", EQUAL_FLOPS: "at equal FLOPs"}
"""Roles of a loss on tokens that reads the same, with what the comparison keeps equal."""


@dataclass(frozen=True)
class Verdict:
    """A word for tables and a sentence for readers."""

    word: Word
    sentence: str


def verdict(
    effects: Mapping[str, Effect], alpha: float = ALPHA, *, too_little: str = ""
) -> Verdict:
    """Judge a treatment by its comparisons.

    Args:
        effects: effects by role of the control. One of BASELINES is required, the placebo is optional, rivals
            get a sentence of their own, and the others only count for Holm's correction. Unadjusted effects
            are adjusted as one family; a caller with a larger family adjusts them first.
        alpha: level of the tests for a difference and for equivalence.
        too_little: why equal scores do not show equivalence; empty if they do.

    Raises:
        ValueError: there is no baseline among the roles.
    """
    role = next((r for r in BASELINES if r in effects), None)
    if role is None:
        raise ValueError(f"roles {sorted(effects)}: must include one of {', '.join(BASELINES)}")
    if any(e.p_holm is None and e.p is not None for e in effects.values()):
        effects = holm(effects)
    found = _against_baseline(effects, role, alpha, too_little)
    rivals = [_rival(effects[r], equal, alpha) for r, equal in RIVALS.items() if r in effects]
    return Verdict(found.word, " ".join([found.sentence, *rivals]))


def _against_baseline(
    effects: Mapping[str, Effect], role: str, alpha: float, too_little: str
) -> Verdict:
    baseline, name = effects[role], BASELINES[role]
    match standing(baseline, alpha):
        case "too few":
            return Verdict("too few seeds", _too_few(baseline, name))
        case "equivalent" if too_little:
            said = f"No difference from {name} is shown: {numbers(baseline)}. {too_little}"
            return Verdict("no difference shown", said)
        case "equivalent":
            return Verdict("equivalent", _equivalent(baseline, name, alpha))
        case "open":
            return Verdict("no difference shown", _open(baseline, name))
        case "worse":
            return Verdict("hurts", f"Worse than {name}: {numbers(baseline)}.")
        case "better":
            return _better(baseline, name, effects.get(PLACEBO), alpha)


def standing(effect: Effect, alpha: float = ALPHA) -> Standing:
    """Return how a treatment compares with one control; the top of the file defines the words."""
    if effect.n < MINIMUM_PAIRS or effect.p is None:
        return "too few"
    if effect.solved is None:
        assert effect.p_equivalent is not None
        if effect.p_equivalent < alpha and not _meets_rule(effect):
            return "equivalent"
    if not _significant(effect, alpha):
        return "open"
    return "better" if effect.gains else "worse"


def numbers(effect: Effect) -> str:
    """Return mean, interval, number of pairs and p, or counts of solved seeds and p, as a phrase."""
    parts = []
    if effect.solved is not None:
        parts.append("solved by {} of {} seeds against {} of {}".format(*effect.solved))
    elif effect.mean is not None:
        parts.append(f"{effect.mean:+.4f} {effect.unit}")
    if effect.interval is not None:
        parts.append("95 % interval {:+.4f} to {:+.4f}".format(*effect.interval))
    if effect.solved is None:
        parts.append(f"n = {effect.n}")
    if effect.p is not None:
        p, how = effect.p, "" if effect.solved is None else " by Fisher's one-sided test"
        if effect.p_holm is not None and effect.p_holm != p:
            p, how = effect.p_holm, f"{how} after Holm"
        parts.append(_p(p) + how)
    return ", ".join(parts)


def _better(baseline: Effect, name: str, placebo: Effect | None, alpha: float) -> Verdict:
    gain = f"Better than {name}: {numbers(baseline)}."
    if placebo is None:
        unknown = (
            "No placebo was run, so nothing shows that the gain comes from the information in the "
            "predicted latents."
        )
        return Verdict("better, no placebo", f"{gain} {unknown} {_rule(baseline)}".rstrip())
    against = numbers(placebo)
    not_shown = "so the gain is not shown to come from the predicted latents."
    match standing(placebo, alpha):
        case "better":
            shown = f"Better than the placebo too: {against}."
            return Verdict("helps", f"{gain} {shown} {_rule(baseline)}".rstrip())
        case "too few":
            return Verdict("too few seeds", f"{gain} {_too_few(placebo, 'the placebo')}")
        case "equivalent":
            other = f"But within {placebo.margin:g} {placebo.unit} of the placebo ({against}), {not_shown}"
        case "worse":
            other = f"But worse than the placebo ({against}), {not_shown}"
        case "open":
            other = f"But no difference from the placebo is shown ({against}), {not_shown}"
    return Verdict("no difference shown", f"{gain} {other}")


def _rival(effect: Effect, equal: str, alpha: float) -> str:
    """Say whether a treatment beats its rival."""
    why = {
        "better": "",
        "worse": "it is worse",
        "equivalent": f"within {effect.margin:g} {effect.unit}",
        "open": "no difference is shown",
        "too few": "too few seeds to say",
    }[standing(effect, alpha)]
    if not why:
        return f"Beats its rival in token space {equal}: {numbers(effect)}."
    return f"Does not beat its rival in token space {equal} ({why}): {numbers(effect)}."


def _meets_rule(effect: Effect) -> bool:
    return effect.p_rule is not None and effect.p_rule < RULE_ALPHA


def _significant(effect: Effect, alpha: float) -> bool:
    p = effect.p if effect.p_holm is None else effect.p_holm
    return p is not None and p < alpha


def _rule(effect: Effect) -> str:
    """Say whether the challenge's rule is met; empty if nats per token are unknown."""
    if effect.p_rule is None or effect.mean_nats is None:
        return ""
    word = "met" if _meets_rule(effect) else "not met"
    return (
        f"The challenge's rule ({RULE_NATS:g} nats per token better at p < {RULE_ALPHA:g}) is {word}: "
        f"{effect.mean_nats:+.4f} nats, {_p(effect.p_rule)}."
    )


def _too_few(effect: Effect, name: str) -> str:
    if effect.n < MINIMUM_PAIRS:
        return (
            f"Too few seeds to compare with {name}: {numbers(effect)}; at least {MINIMUM_PAIRS} pairs are "
            "needed."
        )
    return (
        f"Nothing to test against {name}: all {effect.n} seeds differ by exactly {effect.mean:+.3g} "
        f"{effect.unit}, so seeds change nothing and count as one."
    )


def _equivalent(effect: Effect, name: str, alpha: float) -> str:
    if effect.identical:
        return f"The scores equal those of {name} to the last digit for each of {effect.n} seeds."
    assert effect.p_equivalent is not None
    text = (
        f"Within {effect.margin:g} {effect.unit} of {name} (equivalence test {_p(effect.p_equivalent)}): "
        f"{numbers(effect)}."
    )
    if _significant(effect, alpha):
        text += " The difference is real, but smaller than the margin that counts as equal."
    return text


def _open(effect: Effect, name: str) -> str:
    if effect.solved is not None:
        enough = effect.solved.enough
        would = "no count" if enough is None else f"{enough} of {effect.solved.of}"
        return (
            f"No difference from {name} is shown: {numbers(effect)}. With this many seeds, {would} would "
            "have shown a gain."
        )
    assert effect.smallest_effect is not None
    needed = effect.seeds_needed or f"more than {MOST_SEEDS}"
    return (
        f"No difference from {name} is shown: {numbers(effect)}. With this many seeds, 8 studies of 10 would "
        f"find a difference of {effect.smallest_effect:.4f} {effect.unit}; to find the one seen here "
        f"would take {needed} seeds."
    )


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
