"""What the statistics of a treatment amount to, in words.

Each control gives a standing; the baseline's decides, and a gain has to hold against the placebo too:

    too few      fewer than 3 pairs, or seeds that change nothing
    equivalent   the equivalence test passes, whether or not the difference is significant
    better       Holm-adjusted p < alpha and the mean is negative
    worse        Holm-adjusted p < alpha and the mean is positive
    open         none of these

Equivalence goes before significance: the margin was fixed as what does not matter, and with enough
seeds any difference, however small, becomes significant. There are two exceptions: a gain that is shown to
meet the challenge's rule, which the challenge would pay for whatever it is in bits per byte, and runs so
short that arms cannot have parted (see `jepa_lm.study.trained`), which show no difference and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jepa_lm.study.statistics import (
    ALPHA,
    MINIMUM_PAIRS,
    MOST_SEEDS,
    RULE_ALPHA,
    RULE_NATS,
    Effect,
    holm,
)

Word = Literal[
    "helps",
    "better, no placebo",
    "hurts",
    "equivalent",
    "no difference shown",
    "too few seeds",
]
Standing = Literal["better", "worse", "equivalent", "open", "too few"]

BASELINES = {"weight_0": "weight 0", "none": "no JEPA", "control": "its control"}
"""Roles that can be the baseline, the first present is, and what sentences call them."""
PLACEBO = "placebo"


@dataclass(frozen=True)
class Verdict:
    """A word for tables and a sentence for people."""

    word: Word
    sentence: str


def verdict(
    effects: Mapping[str, Effect], alpha: float = ALPHA, *, too_little: str = ""
) -> Verdict:
    """Judge a treatment by its comparisons.

    Args:
        effects: by role of the control; one of BASELINES has to be there, placebo may be. The others
            count for Holm's correction alone. Effects that were not adjusted are adjusted among
            themselves; a caller with a larger family adjusts them first.
        alpha: level of the tests for a difference and for equivalence.
        too_little: why scores that are equal show no equivalence; empty where they do.

    Raises:
        ValueError: no baseline among the roles.
    """
    role = next((r for r in BASELINES if r in effects), None)
    if role is None:
        raise ValueError(f"roles {sorted(effects)}: one of {', '.join(BASELINES)} is needed")
    if any(e.p_holm is None and e.p_paired is not None for e in effects.values()):
        effects = holm(effects)
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
    """How a treatment stands against one control, see the top of the file."""
    if effect.n < MINIMUM_PAIRS or effect.p_paired is None:
        return "too few"
    assert effect.mean is not None
    assert effect.p_equivalent is not None
    if effect.p_equivalent < alpha and not _meets_rule(effect):
        return "equivalent"
    if not _significant(effect, alpha):
        return "open"
    return "better" if effect.mean < 0 else "worse"


def numbers(effect: Effect) -> str:
    """Mean, interval, pairs and p in a phrase."""
    parts = []
    if effect.mean is not None:
        parts.append(f"{effect.mean:+.4f} BPB")
    if effect.interval is not None:
        parts.append("95 % interval {:+.4f} to {:+.4f}".format(*effect.interval))
    parts.append(f"n = {effect.n}")
    if effect.p_paired is not None:
        p, how = effect.p_paired, ""
        if effect.p_holm is not None and effect.p_holm != p:
            p, how = effect.p_holm, " after Holm"
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
            other = f"But within {placebo.margin:g} BPB of the placebo ({against}), {not_shown}"
        case "worse":
            other = f"But worse than the placebo ({against}), {not_shown}"
        case "open":
            other = f"But no difference from the placebo is shown ({against}), {not_shown}"
    return Verdict("no difference shown", f"{gain} {other}")


def _meets_rule(effect: Effect) -> bool:
    return effect.p_rule is not None and effect.p_rule < RULE_ALPHA


def _significant(effect: Effect, alpha: float) -> bool:
    p = effect.p_paired if effect.p_holm is None else effect.p_holm
    return p is not None and p < alpha


def _rule(effect: Effect) -> str:
    """What the challenge would say; empty where nats per token are not known."""
    if effect.p_rule is None or effect.mean_nats is None:
        return ""
    word = "met" if _meets_rule(effect) else "not met"
    return (
        f"The challenge's rule ({RULE_NATS:g} nats per token better at p < {RULE_ALPHA:g}) is {word}: "
        f"{effect.mean_nats:+.4f} nats, {_p(effect.p_rule)}."
    )


def _too_few(effect: Effect, name: str) -> str:
    if effect.n < MINIMUM_PAIRS:
        return f"Too few seeds to compare with {name}: {numbers(effect)}; {MINIMUM_PAIRS} pairs at least."
    return (
        f"Nothing to test against {name}: all {effect.n} seeds differ by exactly {effect.mean:+.3g} BPB, "
        "so seeds change nothing and count as one."
    )


def _equivalent(effect: Effect, name: str, alpha: float) -> str:
    if effect.identical:
        return f"The same score as {name} for each of {effect.n} seeds, to the last digit."
    assert effect.p_equivalent is not None
    text = (
        f"Within {effect.margin:g} BPB of {name} (equivalence test {_p(effect.p_equivalent)}): "
        f"{numbers(effect)}."
    )
    if _significant(effect, alpha):
        text += " The difference is real, but smaller than what was set to matter."
    return text


def _open(effect: Effect, name: str) -> str:
    assert effect.smallest_effect is not None
    needed = effect.seeds_needed or f"more than {MOST_SEEDS}"
    return (
        f"No difference from {name} is shown: {numbers(effect)}. So many seeds would find "
        f"{effect.smallest_effect:.4f} BPB or more in 8 studies of 10; to find what was seen here it "
        f"would take {needed} seeds."
    )


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
