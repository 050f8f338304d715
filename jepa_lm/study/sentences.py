"""The sentences of a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jepa_lm.study.anytime import MOST, seeds_expected
from jepa_lm.study.family import Adjusted
from jepa_lm.study.power import MINIMUM_PAIRS, MOST_SEEDS, seeds_needed, smallest_effect
from jepa_lm.study.roles import PLACEBO
from jepa_lm.study.statistics import RULE_ALPHA, RULE_NATS, Effect

UNSHOWN = {
    PLACEBO: "so the gain is not shown to come from the predicted latents",
    "regularizers_only": "so the gain may come from the regularizers",
}
"""What follows if the treatment is not better than a gate, by its role."""


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
        parts.append(
            p_value(effect.p)
            + ("" if effect.solved is None else " by Fisher's one-sided test")
            + ("" if effect.p_anytime is None else " at any time")
        )
    return ", ".join(parts)


def rival(effect: Effect, standing: str, equal: str) -> str:
    """Say whether a treatment beats its rival, given its standing against it."""
    why = {
        "better": "",
        "worse": "it is worse",
        "equivalent": f"within {effect.margin:g} {effect.unit}",
        "open": "no difference is shown",
        "too few": "too few seeds to say",
    }[standing]
    if not why:
        return f"Beats its rival in token space {equal}: {numbers(effect)}."
    return f"Does not beat its rival in token space {equal} ({why}): {numbers(effect)}."


def rule(effect: Effect) -> str:
    """Say whether the challenge's rule is met; empty if nats per token are unknown."""
    p, side = (effect.p_rule, "better") if effect.gains else (effect.p_rule_harm, "worse")
    if p is None or effect.mean_nats is None:
        return ""
    word = "met" if p < RULE_ALPHA else "not met"
    return (
        f"The challenge's rule ({RULE_NATS:g} nats per token {side} at p < {RULE_ALPHA:g}) is {word}: "
        f"{effect.mean_nats:+.4f} nats, {p_value(p)}."
    )


def tails(effects: Mapping[str, Effect]) -> str:
    """Say which differences have a tail on the other side than their mean; empty if none has.

    Args:
        effects: those that a word depends on, by the control's name.
    """
    skewed = [f"{name} ({e.tail:.1f})" for name, e in effects.items() if e.tail is not None]
    if not skewed:
        return ""
    gains = next(iter(effects.values())).gains
    return (
        f"Skewness toward a {'harm' if gains else 'gain'} is large in the differences from "
        f"{', '.join(skewed)}: if the tail is longer than these seeds show, this word is wrong more often "
        "than p says."
    )


def chance(effect: Effect, name: str, adjusted: Adjusted) -> str:
    """Say that a difference does not stand out among the treatments of a study."""
    side = "Better" if effect.gains else "Worse"
    return f"{side} than {name} by itself: {numbers(effect)}. {of_several(adjusted)}"


def too_few(effect: Effect, name: str) -> str:
    """Say why nothing can be tested."""
    if effect.n < MINIMUM_PAIRS:
        return (
            f"Too few seeds to compare with {name}: {numbers(effect)}; at least {MINIMUM_PAIRS} pairs are "
            "needed."
        )
    return (
        f"Nothing to test against {name}: all {effect.n} seeds differ by exactly {effect.mean:+.3g} "
        f"{effect.unit}, so seeds change nothing and count as one."
    )


def equivalent(effect: Effect, name: str, alpha: float) -> str:
    """Say that the difference is within the margin."""
    if effect.identical:
        return f"The scores equal those of {name} to the last digit for each of {effect.n} seeds."
    assert effect.p_same is not None
    text = (
        f"Within {effect.margin:g} {effect.unit} of {name} (equivalence test {p_value(effect.p_same)}): "
        f"{numbers(effect)}."
    )
    if effect.p is not None and effect.p < alpha:
        text += " The difference is real, but smaller than the margin that counts as equal."
    return text


def undecided(effect: Effect, name: str) -> str:
    """Say that nothing is shown."""
    return f"No difference from {name} is shown: {numbers(effect)}."


def would_find(effect: Effect, gates: Sequence[Effect], level: float) -> str:
    """Say what baseline and gates together would have shown, or when they will where e-values decide.

    Args:
        effect: against the baseline. gates: the same against the other controls with a say.
        level: of the strictest test, after correction.
    """
    if effect.solved is not None:
        enough = effect.solved.enough
        would = "no count" if enough is None else f"{enough} of {effect.solved.of}"
        return f"With this many seeds, {would} would have shown a gain."
    asked = [e for e in (effect, *gates) if e.std and e.n >= MINIMUM_PAIRS]
    if not asked:
        return ""
    if effect.p_anytime is not None:
        return _expected(effect, asked)
    smallest = max(smallest_effect(e.std or 0.0, e.n, level, len(asked)) for e in asked)
    what, controls = "a difference", 1 + len(gates)
    if gates:
        which = f"all {controls}" if controls > 2 else "both"
        if len(asked) < controls:
            which = f"{len(asked)} (the others cannot be tested) of {controls}"
        what = f"a gain on {which} controls with a say"
    return (
        f"With this many seeds, 8 studies of 10 would find {what} of {smallest:.4f} {effect.unit}"
        f"{_needed(effect, asked, level)}."
    )


def _expected(effect: Effect, asked: Sequence[Effect]) -> str:
    """Say when e-values are likely to decide, by a difference or by equivalence, and if they are at all."""
    tested = asked if effect.gains else asked[:1]
    apart = [
        seeds_expected(abs(e.mean or 0.0) / (e.std or 1.0)) if e.gains == effect.gains else None
        for e in tested
    ]
    inside = max(0.0, effect.margin - abs(effect.mean or 0.0)) / (effect.std or 1.0)
    within = seeds_expected(inside, same=True)
    decided = [within, None if None in apart else max(n for n in apart if n is not None)]
    seeds = min((n for n in decided if n is not None), default=None)
    when = f"within {MOST} seeds no word is" if seeds is None else f"a word is after {seeds} seeds"
    return f"If differences stay as they are, {when} to be expected."


def _needed(effect: Effect, asked: Sequence[Effect], level: float) -> str:
    """Return how many seeds would find what was seen: a gain on all of these, or a harm on the first."""
    tested = asked if effect.gains else asked[:1]
    if not all(e.gains == effect.gains for e in tested):
        return ""
    seeds = [seeds_needed(e.mean or 0.0, e.std or 1.0, level, len(tested)) for e in tested]
    known = [n for n in seeds if n is not None]
    needed = max(known) if len(known) == len(seeds) else f"more than {MOST_SEEDS}"
    what = "the one" if len(tested) == 1 else "those"
    return f"; to find {what} seen here would take {needed} seeds"


def trend(
    word: str, slope: Effect, first: tuple[str, Effect], last: tuple[str, Effect], level: float
) -> str:
    """Say what the scores at the rungs of a ladder show, see `jepa_lm.study.trend`.

    Args:
        word: of the trend by itself. slope: of the seeds. first, last: smallest and largest rung, with the
            effect there. level: of the strictest test, after correction.
    """
    (low, before), (high, after) = first, last
    gains, loses = ("gain", "harm") if slope.gains else ("harm", "gain")
    at_first, at_last = f"at {low}, {numbers(before)}", f"at {high}, {numbers(after)}"
    match word:
        case "grows":
            return f"The {gains} grows with compute: {numbers(slope)}; {at_last}."
        case "vanishes":
            still = after.gains == before.gains and after.p is not None and after.p < level
            end = f"it is {'still there' if still else 'no longer shown'}"
            there = f"It is there {at_first}; {at_last}, {end}."
            return f"The {loses} shrinks with compute: {numbers(slope)}. {there}"
        case "changes sign":
            return f"A {loses} turns into a {gains} with compute: {numbers(slope)}; {at_first}; {at_last}."
        case "shifts":
            return (
                f"The difference moves toward a {gains} with compute: {numbers(slope)}. Whether a {gains} "
                f"grows or a {loses} shrinks is not shown: {at_first}; {at_last}."
            )
        case "no trend shown":
            found = smallest_effect(slope.std, slope.n, level) if slope.std else 0.0
            return (
                f"No trend with compute is shown: {numbers(slope)}. With this many seeds, 8 studies of 10 "
                f"would find a slope of {found:.4f} {slope.unit}."
            )
    if slope.n < MINIMUM_PAIRS:
        return f"Too few seeds for a trend: {slope.n} have every rung; at least {MINIMUM_PAIRS} are needed."
    return f"Nothing to test: the slopes of all {slope.n} seeds are equal, so seeds count as one."


def of_several(adjusted: Adjusted) -> str:
    """Say that a trend does not stand out among the treatments of a study."""
    assert adjusted.difference is not None
    return (
        f"But one of {adjusted.treatments} treatments may look so by chance: {p_value(adjusted.difference)} "
        "after Holm."
    )


def p_value(p: float) -> str:
    """Return a p-value with its name."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
