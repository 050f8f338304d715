"""Compare the treatments of a sweep with their controls, and judge them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jepa_lm.study import statistics
from jepa_lm.study.arm_result import ArmResult
from jepa_lm.study.comparable import apart
from jepa_lm.study.exclusion import Out, excluded, left_out, told
from jepa_lm.study.family import Adjusted, adjust
from jepa_lm.study.manifest import Comparison, Manifest
from jepa_lm.study.measure import other_grids
from jepa_lm.study.power import ALPHA
from jepa_lm.study.roles import BASELINES, EQUAL_FLOPS, NONE_EQUAL_FLOPS, PLACEBO, is_gate
from jepa_lm.study.sequential import Seeds, level_of, tail_of
from jepa_lm.study.statistics import Effect
from jepa_lm.study.trained import too_little
from jepa_lm.study.verdict import GAINS, baseline_of, claim, verdict

BUDGET = ("trainer.max_steps", "trainer.max_time")
NO_VERDICT = "no verdict"
"""Verdict of a treatment without a baseline."""
NOT_COMPARABLE = "not comparable"
"""Verdict of a treatment that was not compared as planned."""


@dataclass(frozen=True)
class Against:
    """A treatment compared with one of its controls."""

    comparison: Comparison
    control: ArmResult
    effect: Effect
    """Effect over the seeds that finished on both sides."""
    gate: bool = False
    """Whether the treatment must be better than this control to help."""


def role_of(against: Against) -> str:
    """Return the control's role in the argument, in words."""
    role = against.comparison.role
    return BASELINES.get(role, role.replace("_", " "))


@dataclass(frozen=True)
class Treatment:
    """An arm with all of its controls."""

    arm: ArmResult
    against: tuple[Against, ...]
    scores_say: str
    """The verdict's word, if the arms are comparable."""
    sentence: str
    apart: tuple[str, ...]
    """Why the arms that the word depends on are not comparable; empty when they are."""
    aside: tuple[str, ...]
    """Which of the other arms it is not comparable with, and why."""
    not_applicable: Mapping[str, str]
    """Why controls do not apply, by control."""
    adjusted: Adjusted | None = None
    """What its scores claim, corrected for the other treatments; None without a baseline."""
    placebo: Against | None = None
    """The placebo against the baseline; None without one of them."""
    diverged: str = ""
    """Which runs diverged, if runs of the treatment failed or others diverged than of the baseline."""

    @property
    def word(self) -> str:
        """The verdict in a few words."""
        return NOT_COMPARABLE if self.apart else self.scores_say

    @property
    def main(self) -> Against:
        """The comparison with the baseline, which the verdict is about, or else the first comparison."""
        roles = {a.comparison.role: a for a in reversed(self.against)}
        return next((roles[role] for role in BASELINES if role in roles), self.against[0])

    @property
    def with_a_say(self) -> dict[str, ArmResult]:
        """Return the arms that the word depends on, by name: its own, the baseline's, and the gates."""
        controls = [self.main.control, *(a.control for a in self.against if a.gate)]
        return {arm.name: arm for arm in (self.arm, *controls)}


def treatments(
    plan: Manifest,
    arms: Mapping[str, ArmResult],
    not_planned: Callable[[Iterable[ArmResult]], list[str]],
) -> Iterator[Treatment]:
    """Compare every treatment with its controls, then judge them as one family.

    Args:
        not_planned: tells why arms were not compared as planned.
    """
    names = dict.fromkeys(c.of for c in plan.comparisons)
    drafts = {
        name: _compared(arms[name], [c for c in plan.comparisons if c.of == name], arms, plan.seeds)
        for name in names
    }
    adjusted = adjust(
        {
            name: claim(found.effects, found.gates)
            for name, found in drafts.items()
            if not found.effects.keys().isdisjoint(BASELINES)
        }
    )
    for name, found in drafts.items():
        word, sentence = _judged(arms[name], found, adjusted.get(name), level_of(plan.seeds))
        unlike, aside = _unlike(arms[name], found, plan, not_planned)
        yield Treatment(
            arm=arms[name],
            against=tuple(
                Against(c, found.controls[role], found.effects[role], role in found.gates)
                for role, c in found.by_role.items()
            ),
            scores_say=word,
            sentence=sentence,
            apart=unlike,
            aside=aside,
            not_applicable=plan.not_applicable.get(name, {}),
            adjusted=adjusted.get(name),
            placebo=_placebo(found, plan.seeds),
            diverged=_diverged(arms[name], found),
        )


def _unlike(
    treatment: ArmResult,
    found: _Compared,
    plan: Manifest,
    not_planned: Callable[[Iterable[ArmResult]], list[str]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return why arms with a say are not comparable, and with which others the treatment is not."""
    other = {c.against for c in found.by_role.values() if _budgeted(c)}
    longer = {
        c.against for c in found.by_role.values() if c.role in (EQUAL_FLOPS, NONE_EQUAL_FLOPS)
    }

    def problems(compared: Sequence[ArmResult]) -> list[str]:
        known = {arm.name: list(arm.runs.values()) for arm in compared}
        validated = ((name, runs) for name, runs in known.items() if name not in longer)
        return [
            *not_planned(compared),
            *apart(known, plan.match, other),
            *other_grids(validated, treatment.measure),
        ]

    judged = tuple(problems([treatment, *(found.controls[role] for role in found.with_a_say)]))
    aside = (
        f"{treatment.name} and {arm.name}, which has no say, are not comparable: {problem}"
        for role, arm in found.controls.items()
        if role not in found.with_a_say
        for problem in problems([treatment, arm])
        if problem not in judged
    )
    return judged, tuple(aside)


def _placebo(found: _Compared, seeds: Seeds) -> Against | None:
    """Compare the placebo with the baseline: a placebo that harms is easily beaten."""
    role = next((role for role in BASELINES if role in found.controls), None)
    if role is None or PLACEBO not in found.controls:
        return None
    placebo, baseline = found.controls[PLACEBO], found.controls[role]
    comparison = Comparison(placebo.name, baseline.name, role)
    return Against(comparison, baseline, _effect(placebo, baseline, found.out, seeds))


class _Compared(NamedTuple):
    """A treatment's comparisons by the role of the control."""

    by_role: Mapping[str, Comparison]
    controls: Mapping[str, ArmResult]
    effects: Mapping[str, Effect]
    gates: tuple[str, ...]
    with_a_say: tuple[str, ...]
    """Roles that the word depends on: the baselines and the gates."""
    out: Mapping[str, Out]
    """Runs that take no part, by arm."""


def _compared(
    treatment: ArmResult,
    comparisons: Sequence[Comparison],
    arms: Mapping[str, ArmResult],
    seeds: Seeds,
) -> _Compared:
    by_role = _by_role(treatment, comparisons, arms)
    controls = {role: arms[c.against] for role, c in by_role.items()}
    gates = tuple(role for role, c in by_role.items() if is_gate(c.role, c.gate))
    with_a_say = tuple(role for role in controls if role in (*BASELINES, *gates))
    judged = [treatment, *(controls[role] for role in with_a_say)]
    out = excluded([treatment, *controls.values()], judged)
    effects = {role: _effect(treatment, c, out, seeds) for role, c in controls.items()}
    return _Compared(by_role, controls, effects, gates, with_a_say, out)


def _by_role(
    treatment: ArmResult, compared: Sequence[Comparison], arms: Mapping[str, ArmResult]
) -> dict[str, Comparison]:
    """Return the comparisons by role, with only the nearest baseline of each role.

    In a sweep over several objectives, weight 0 of another objective is the same model again.
    """

    def near(comparison: Comparison) -> int:
        theirs = arms[comparison.against].group.settings
        return sum(theirs.get(key) == value for key, value in treatment.group.settings.items())

    found: dict[str, Comparison] = {}
    for comparison in sorted(compared, key=near, reverse=True):
        if comparison.role not in found:
            found[comparison.role] = comparison
        elif comparison.role not in BASELINES:
            found[f"{comparison.role} of {comparison.against}"] = comparison
    order = list(compared)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def _budgeted(comparison: Comparison) -> bool:
    """Return whether the control has another budget on purpose."""
    return any(key in comparison.differences for key in BUDGET)


def _effect(
    treatment: ArmResult, control: ArmResult, out: Mapping[str, Out], seeds: Seeds = "fixed"
) -> Effect:
    """Return the effect under the treatment's measure, without the runs that are out."""
    measure, quantity = treatment.measure, treatment.measure.quantity
    ours, theirs = (arm.without(out[arm.name]) for arm in (treatment, control))
    # The challenge's rule is about losses and nothing else.
    nats = (ours.nll, theirs.nll) if measure.is_loss else (None, None)
    return statistics.effect(
        ours.scores,
        theirs.scores,
        nll_treatment=nats[0],
        nll_control=nats[1],
        margin=measure.margin,
        unit=quantity.unit,
        larger=quantity.larger,
        bimodal=quantity.bimodal,
        anytime=seeds == "open",
        tail=tail_of(seeds),
    )


def judged(treatment: ArmResult, baseline: ArmResult) -> tuple[Effect, str]:
    """Return the difference of two arms, and the verdict's word on it alone."""
    out = excluded([treatment, baseline], [treatment, baseline])
    effect = _effect(treatment, baseline, out)
    found = _Compared({}, {"none": baseline}, {"none": effect}, (), ("none",), out)
    return effect, _judged(treatment, found)[0]


def _judged(
    treatment: ArmResult,
    found: _Compared,
    adjusted: Adjusted | None = None,
    alpha: float = ALPHA,
) -> tuple[str, str]:
    """Return the verdict's word and sentence."""
    effects = found.effects
    if effects.keys().isdisjoint(BASELINES):
        return NO_VERDICT, "It was not compared with weight 0, so there is no verdict."
    role = baseline_of(effects)
    runs = (*treatment.runs.values(), *found.controls[role].runs.values())
    # How a loss falls says nothing about a share.
    margin = effects[role].margin if treatment.measure.is_loss else math.inf
    short = too_little(runs, margin, effects[role].unit)
    said = verdict(effects, found.gates, adjusted, alpha, too_little=short)
    compared = (treatment, found.controls[role])
    mine, theirs = (found.out[arm.name] for arm in compared)
    # Nothing helps while a run of it has no score, whatever the baseline's runs did.
    unstable = mine.keys() != theirs.keys() or bool(treatment.failed and said.word in GAINS)
    if unstable:
        said = said.without(_diverged(treatment, found))
    gates = (found.controls[gate] for gate in found.gates)
    untold = (*(() if unstable else compared), *gates)
    without = left_out({arm.name: found.out[arm.name] for arm in untold})
    return said.word, f"{said.sentence} {without}".strip()


def _diverged(treatment: ArmResult, found: _Compared) -> str:
    role = next((role for role in BASELINES if role in found.controls), None)
    if role is None:
        return ""
    mine, theirs = (found.out[arm.name] for arm in (treatment, found.controls[role]))
    if mine.keys() == theirs.keys() and not treatment.failed:
        return ""
    return told(mine, theirs, BASELINES[role])
