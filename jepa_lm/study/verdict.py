"""Put the statistics of a treatment into words.

Each control gives a standing, at the full level:

    too few      fewer than 3 pairs, or seeds that change nothing
    equivalent   both equivalence tests pass, whether or not the difference is significant (a gate is passed
                 by however little)
    better       p < alpha and the treatment is on the better side
    worse        p < alpha and it is on the other one
    open         none of these

A treatment helps if it is better than its baseline and than every gate: the placebo, its regularizers alone,
its rival in token space. Each is tested at alpha, and together they err no more often than that
(intersection-union, Berger 1982), so a word does not depend on arms without a say. It hurts if it is worse
than the baseline. With several treatments, Holm's correction goes over their claims (`jepa_lm.study.family`).
Where seeds that solved their task are counted, p is of Fisher's one-sided test, so each of "better" and
"worse" has level alpha; nothing is equivalent then.

If other runs of the treatment have diverged than of the baseline (`jepa_lm.study.exclusion`), the word is
"unstable", unless the rest show a harm.

Against the baseline, equivalence takes precedence over significance: the margin is fixed in advance as
what does not matter, and with enough seeds any difference, however small, becomes significant. There are two
exceptions. A gain or a harm that meets the challenge's rule counts, however small it is in bits per byte.
Runs so short that arms cannot have diverged (`jepa_lm.study.trained`) show no difference and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from jepa_lm.study.family import Adjusted, Claim
from jepa_lm.study.power import ALPHA, MINIMUM_PAIRS
from jepa_lm.study.roles import BASELINES, GATES, PLACEBO, RIVALS, named
from jepa_lm.study.sentences import (
    UNSHOWN,
    chance,
    equivalent,
    numbers,
    rival,
    rule,
    tails,
    too_few,
    undecided,
    would_find,
)
from jepa_lm.study.statistics import Effect

Word = Literal[
    "helps",
    "better, no placebo",
    "hurts",
    "unstable",
    "equivalent",
    "no difference shown",
    "too few seeds",
]
Standing = Literal["better", "worse", "equivalent", "open", "too few"]


GAINS: tuple[Word, ...] = ("helps", "better, no placebo")
UNDECIDED: Word = "no difference shown"


@dataclass(frozen=True)
class Verdict:
    """A word for tables and a sentence for readers."""

    word: Word
    sentence: str

    def without(self, diverged: str) -> Verdict:
        """Return the verdict on a treatment of which this one, on the other runs, is only a part.

        Args:
            diverged: the runs that are left out, as a sentence.
        """
        # A harm that the other runs show is no better for the runs that diverged.
        word: Word = "hurts" if self.word == "hurts" else "unstable"
        return Verdict(word, f"{diverged} {self.sentence}")


def baseline_of(roles: Collection[str]) -> str:
    """Return the role of the baseline.

    Raises:
        ValueError: there is none among these.
    """
    role = next((role for role in BASELINES if role in roles), None)
    if role is None:
        raise ValueError(f"roles {sorted(roles)}: must include one of {', '.join(BASELINES)}")
    return role


def claim(effects: Mapping[str, Effect], gates: Collection[str]) -> Claim:
    """Return what the scores claim of a treatment; the arguments are those of `verdict`."""
    baseline = effects[baseline_of(effects)]
    runs = (baseline.differences, *(effects[gate].differences for gate in gates))
    if baseline.p is None or baseline.n < MINIMUM_PAIRS or baseline.identical:
        return Claim(runs=runs)  # nothing to claim, and no other claim suffers from it
    asked = [baseline, *(effects[gate] for gate in gates)] if baseline.gains else [baseline]
    same_side = [e.p if e.gains == baseline.gains and e.p is not None else 1.0 for e in asked]
    return Claim(max(same_side), baseline.p_same, runs)


def verdict(
    effects: Mapping[str, Effect],
    gates: Collection[str] | None = None,
    adjusted: Adjusted | None = None,
    alpha: float = ALPHA,
    *,
    too_little: str = "",
) -> Verdict:
    """Judge a treatment by its comparisons.

    Args:
        effects: effects by role of the control, one of BASELINES among them.
        gates: roles that it must be better than to help; None: those of GATES that are there. The others have
            no say, but rivals get a sentence.
        adjusted: its claim after correction for the other treatments; None if it is the only one.
        alpha: level of the tests for a difference and for equivalence.
        too_little: why equal scores do not show equivalence; empty if they do.

    Raises:
        ValueError: there is no baseline among the roles.
    """
    role = baseline_of(effects)
    if gates is None:
        gates = [gate for gate in GATES if gate in effects]
    if adjusted is None:
        alone = claim(effects, gates)
        adjusted = Adjusted(alone.difference, alone.same)
    found = _against_baseline(effects, role, gates, adjusted, alpha, too_little)
    rivals = [
        rival(effects[r], against_gate(effects[r], alpha), equal)
        for r, equal in RIVALS.items()
        if r in effects
    ]
    return Verdict(found.word, " ".join([found.sentence, *rivals]))


def _against_baseline(
    effects: Mapping[str, Effect],
    role: str,
    gates: Collection[str],
    adjusted: Adjusted,
    alpha: float,
    too_little: str,
) -> Verdict:
    baseline, name = effects[role], BASELINES[role]
    others = [effects[gate] for gate in gates]
    found = standing(baseline, alpha)
    # What holds alone must hold beside the other treatments, too.
    if found == "equivalent" and not baseline.identical and not _below(adjusted.same, alpha):
        found = _side(baseline, alpha)
    uncorrected = found in ("better", "worse") and not _below(adjusted.difference, alpha)
    would = would_find(baseline, others, alpha / adjusted.treatments)
    match found:
        case "too few":
            return Verdict("too few seeds", too_few(baseline, name))
        case "equivalent" if too_little:
            side = _side(baseline, alpha)
            within = f"{side.capitalize()} than {name}, within the margin: {numbers(baseline)}."
            said = undecided(baseline, name) if side == "open" else within
            return Verdict(UNDECIDED, f"{said} {too_little}")
        case "equivalent":
            return Verdict("equivalent", equivalent(baseline, name, alpha))
        case "open":
            return _unshown(undecided(baseline, name), would)
        case "worse" if uncorrected:
            return _unshown(chance(baseline, name, adjusted), would)
        case "worse":
            told = (rule(baseline) if baseline.meets_rule else "", tails({name: baseline}))
            worse = f"Worse than {name}: {numbers(baseline)}."
            return Verdict("hurts", " ".join(filter(None, [worse, *told])))
        case "better":
            shown = _better(effects, role, gates, alpha)
            if shown.word in GAINS and uncorrected:
                return _unshown(chance(baseline, name, adjusted), would)
            return _unshown(shown.sentence, would) if shown.word == UNDECIDED else shown


def _unshown(sentence: str, would: str) -> Verdict:
    return Verdict(UNDECIDED, f"{sentence} {would}".strip())


def standing(effect: Effect, alpha: float = ALPHA) -> Standing:
    """Return how a treatment compares with one control; the top of the file defines the words."""
    if effect.n < MINIMUM_PAIRS or effect.p is None:
        return "too few"
    if effect.solved is None and _below(effect.p_same, alpha) and not effect.meets_rule:
        return "equivalent"
    return _side(effect, alpha)


def _side(effect: Effect, alpha: float) -> Standing:
    if not _below(effect.p, alpha):
        return "open"
    return "better" if effect.gains else "worse"


def against_gate(effect: Effect, alpha: float = ALPHA) -> Standing:
    """Return how a treatment compares with a control that it must be better than: by however little."""
    if effect.n >= MINIMUM_PAIRS and effect.gains and _below(effect.p, alpha):
        return "better"
    return standing(effect, alpha)


def _better(
    effects: Mapping[str, Effect], role: str, gates: Collection[str], alpha: float
) -> Verdict:
    """Judge a gain on the baseline by the gates."""
    baseline, name = effects[role], BASELINES[role]
    gain = f"Better than {name}: {numbers(baseline)}."
    passed, failed = [], []
    for gate in gates:
        effect, called = effects[gate], named(gate)
        against = numbers(effect)
        match against_gate(effect, alpha):
            case "better":
                passed += [] if gate in RIVALS else [f"Better than {called} too: {against}."]
                continue
            case "too few":
                return Verdict("too few seeds", f"{gain} {too_few(effect, called)}")
            case "equivalent":
                why = f"within {effect.margin:g} {effect.unit} of {called} ({against})"
            case "worse":
                why = f"worse than {called} ({against})"
            case "open":
                why = f"no difference from {called} is shown ({against})"
        follows = UNSHOWN.get(gate.partition(" ")[0], "so this is no gain on it")
        failed.append(f"But {why}, {follows}.")
    if failed:
        return Verdict(UNDECIDED, " ".join([gain, *failed]))
    word: Word = "helps"
    if not any(gate.partition(" ")[0] == PLACEBO for gate in gates):
        word = "better, no placebo"
        passed.append(
            "No placebo was run, so nothing shows that the gain comes from the information in the "
            "predicted latents."
        )
    skewed = tails({name: baseline, **{named(gate): effects[gate] for gate in gates}})
    return Verdict(word, " ".join(filter(None, [gain, *passed, rule(baseline), skewed])))


def _below(p: float | None, alpha: float) -> bool:
    return p is not None and p < alpha
