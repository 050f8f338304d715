"""Fair tuning: every arm of a study gets the same number of draws over the same settings.

    FOLDER/tuning: for each arm, draws x seeds, validated on text of their own -> the best draw of each arm
    FOLDER: the study, each arm with its best draw, on other seeds and on the validation text

Draw 0 is the config as it is; the others are points of a Halton sequence, the same for all arms. A setting
that an arm has for its own purpose (its weight of 0, half a weight) is not drawn for it.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jepa_lm.study.arms import ABSENT
from jepa_lm.study.manifest import Group, Manifest, Tuned, Untuned
from jepa_lm.study.measure import Measure, measure_for
from jepa_lm.study.planned_arms import TUNED
from jepa_lm.study.planner import Planner
from jepa_lm.study.registration import configs_of
from jepa_lm.study.request import SEED, Compose, Request
from jepa_lm.study.runs import Run
from jepa_lm.utils.config import check_type, unknown_key
from jepa_lm.utils.errors import SweepError, UserError
from jepa_lm.utils.kinds import Count, Seed
from jepa_lm.utils.nested import flat

FOLDER = "tuning"
"""Folder of the draws, below that of the study."""
TEXT = "data.tuning"
KINDS = {"text": str | int, "draws": Count, "seeds": list[int], "scale": dict, "range": dict}
DIGITS = 4
"""Significant digits of a drawn number."""
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


@dataclass(frozen=True)
class Tuning:
    """What is tuned, as written below `study.tuning`."""

    text: str | int
    """`data.tuning` of every run of the study: `novel`, or the last n training tokens."""
    draws: int
    """Draws of each arm; the first is the config as it is."""
    seeds: list[int]
    """Of each draw; none of them is a seed of the study."""
    scale: dict[str, list[float]] = field(default_factory=dict)
    """Range of a factor by pattern of keys, such as `optimizer.groups.*.lr`, drawn in the logarithm."""
    range: dict[str, list[float]] = field(default_factory=dict)
    """Range of values by pattern of keys."""

    @property
    def axes(self) -> list[str]:
        """Keys and patterns that are drawn, in order."""
        return [*self.scale, *self.range]

    @property
    def says(self) -> str:
        """Return the rule in a phrase."""
        drawn = [
            *(f"{key} x {low:g} to {high:g}" for key, (low, high) in self.scale.items()),
            *(f"{key} {low:g} to {high:g}" for key, (low, high) in self.range.items()),
        ]
        return (
            f"the best of {self.draws} draws of each arm with the seeds {', '.join(map(str, self.seeds))}, "
            f"scored on data.tuning={self.text}: {', '.join(drawn)}"
        )


def read_tuning(node: Mapping[str, Any] | None, seeds: Sequence[int]) -> Tuning | None:
    """Read `study.tuning`; None if nothing is tuned.

    Args:
        seeds: of the study.

    Raises:
        UserError: naming the key.
    """
    if node is None:
        return None
    check_type("study.tuning", node, Mapping)
    for key, value in node.items():
        if key not in KINDS:
            raise unknown_key(f"study.tuning.{key}", [f"study.tuning.{k}" for k in KINDS], "tuning")
        check_type(f"study.tuning.{key}", value, KINDS[key])
    found = Tuning(**node)
    if not found.seeds:
        raise UserError("study.tuning.seeds=[]: at least one, such as [1001]")
    for seed in found.seeds:
        check_type("study.tuning.seeds", seed, Seed)
        if seed in seeds:
            raise UserError(
                f"study.tuning.seeds={found.seeds}: {seed} is one of the study, which needs fresh seeds"
            )
    if found.draws > 1 and not found.axes:
        raise UserError(f"study.tuning.draws={found.draws}: study.tuning.scale and range are empty")
    if len(found.axes) > len(PRIMES):
        raise UserError(f"study.tuning: at most {len(PRIMES)} settings, {len(found.axes)} given")
    for kind, least in (("scale", 0.0), ("range", -math.inf)):
        for key, ends in getattr(found, kind).items():
            path = f"study.tuning.{kind}.{key}"
            check_type(path, ends, list[float])
            if len(ends) != 2 or not least < ends[0] < ends[1] < math.inf:
                above = ", both above 0" if kind == "scale" else ""
                raise UserError(
                    f"{path}={ends}: two numbers, the first less than the second{above}"
                )
    return found


def plan_tuning(
    plan: Manifest, configs: Mapping[str, Mapping[str, Any]], compose: Compose, tuning: Tuning
) -> tuple[Manifest, dict[str, Any]]:
    """Plan the draws of every arm of a study that was planned without tuning.

    Args:
        configs: resolved configs of the study's jobs by folder.

    Returns:
        A sweep with a group for each draw, and its resolved configs by folder.

    Raises:
        UserError: a setting is in no arm.
    """
    planner = Planner(compose)
    jobs = {job.folder: job for job in plan.jobs}
    matched: set[str] = set()
    for group in _tuned_groups(plan):
        run = next(iter(group.runs.values()))
        words = [w for w in jobs[run].overrides if not w.startswith(f"{SEED}=")]
        own = _own_business(plan, group.name)
        for draw in range(tuning.draws):
            values = drawn(configs[run], tuning, draw, own)
            matched |= values.keys()
            settings = {
                key: f"{value:.{DIGITS}g}" for of in values.values() for key, value in of.items()
            }
            composed = compose(
                [*words, *(f"{k}={v}" for k, v in settings.items()), "data.validate_on=tuning"]
            )
            says = _in_words(tuning, draw, values)
            name = f"{group.name}/draw-{draw}"
            planner.add(name, composed, tuning.seeds, says=says, settings=settings)
    for axis in tuning.axes if tuning.draws > 1 else ():
        if axis not in matched:
            kind = "scale" if axis in tuning.scale else "range"
            raise UserError(f"study.tuning.{kind}.{axis}: no arm has a number there to draw")
    command = Request(plan.command, {})
    return planner.manifest(command, f"{plan.name} {FOLDER}", "sweep"), planner.configs


@dataclass(frozen=True)
class Draws:
    """The draws of a study that is tuned before it is run.

    Args:
        untuned: plan of the study with the config as it is. plan, configs: of the draws, see `plan_tuning`.
        plan_study: returns the plan and configs of the study, given the overrides of each arm's best draw.
    """

    untuned: Manifest
    plan: Manifest
    configs: Mapping[str, Any]
    plan_study: Callable[[Mapping[str, Sequence[str]]], tuple[Manifest, dict[str, Any]]]

    def finished(self, folder: Path) -> bool:
        """Return whether all draws of the study in this folder have been made."""
        return not any(Run(folder / FOLDER / job.folder).lost for job in self.plan.jobs)

    def study(self, folder: Path) -> tuple[Manifest, dict[str, Any]]:
        """Return the plan and the configs of the study with each arm's best draw.

        Raises:
            SweepError: see `chosen`.
        """
        tuned = chosen(self.untuned, self.plan, folder / FOLDER)
        plan, configs = self.plan_study(words_of(self.untuned, tuned))
        return replace(plan, tuning=tuned, untuned=self.untuned.untuned), configs


def to_be_tuned(plan: Manifest, tuning: Tuning) -> Manifest:
    """Return the plan with what is registered of a study before its draws."""
    treatments = {comparison.of for comparison in plan.comparisons}
    groups = (replace(g, says=TUNED) if g.name in treatments else g for g in plan.groups)
    untuned = Untuned(tuning.says, configs_of(plan))
    return replace(plan, groups=tuple(groups), untuned=untuned)


def _tuned_groups(plan: Manifest) -> Iterator[Group]:
    """Yield the groups that are tuned: all but those that must equal another one bit for bit."""
    copies = {identity.runs[0] for identity in plan.identities}
    for group in plan.groups:
        if not copies.issuperset(group.runs.values()):
            yield group


def _own_business(plan: Manifest, name: str) -> set[str]:
    """Return the keys at which an arm differs from its treatment although both have a value."""
    return {
        key
        for comparison in plan.comparisons
        if comparison.against == name
        for key, pair in comparison.differences.items()
        if ABSENT not in pair
    }


def drawn(
    config: Mapping[str, Any],
    tuning: Tuning,
    draw: int,
    own: set[str] | frozenset[str] = frozenset(),
) -> dict[str, dict[str, float]]:
    """Return the values of a draw by axis and key, for an arm with this resolved config.

    Every axis is there that has numbers in the config; draw 0 changes none of them.

    Args:
        own: keys that are not drawn.
    """
    numbers = {
        key: value
        for key, value in flat(config).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in own
    }
    found: dict[str, dict[str, float]] = {}
    for axis in tuning.axes:
        here = {key: value for key, value in numbers.items() if fnmatchcase(key, axis)}
        if not here:
            continue
        point = _point(tuning, draw, axis)
        if draw == 0:
            found[axis] = {}
        elif axis in tuning.scale:
            found[axis] = {key: value * point for key, value in here.items() if value}
        else:
            found[axis] = dict.fromkeys(here, point)
    return found


def _point(tuning: Tuning, draw: int, axis: str) -> float:
    """Return the factor or the value of a draw on one axis."""
    share = _halton(draw, PRIMES[tuning.axes.index(axis)], random.Random(axis).random())
    if axis in tuning.scale:
        low, high = tuning.scale[axis]
        return float(low * (high / low) ** share)
    low, high = tuning.range[axis]
    return low + (high - low) * share


def _in_words(tuning: Tuning, draw: int, values: Mapping[str, Mapping[str, float]]) -> str:
    """Describe a draw in a phrase, such as `optimizer.groups.*.lr x 1.81, model.dropout=0.14`."""
    told = [
        f"{axis}{' x ' if axis in tuning.scale else '='}{_point(tuning, draw, axis):.3g}"
        for axis, of in values.items()
        if of
    ]
    return ", ".join(told) or "as configured"


def _halton(index: int, base: int, shift: float) -> float:
    """Return a point of the van der Corput sequence of a base, shifted within [0, 1)."""
    value, part = 0.0, 1.0
    while index:
        part /= base
        index, digit = divmod(index, base)
        value += digit * part
    return (value + shift) % 1


def chosen(plan: Manifest, draws: Manifest, folder: Path) -> dict[str, Tuned]:
    """Return the best draw of each arm, by its mean over the tuning seeds.

    Args:
        plan: of the study, without tuning. draws: the plan of its draws. folder: of the draws.

    Raises:
        SweepError: no draw of an arm has a score with every seed.
    """
    runs = {job.folder: Run(folder / job.folder) for job in draws.jobs}
    measure = measure_for(plan.metric, plan.estimand, runs.values(), plan.margin)
    found: dict[str, Tuned] = {}
    for group in _tuned_groups(plan):
        of = [g for g in draws.groups if g.name.rpartition("/")[0] == group.name]
        scores = [_mean(measure, [runs[run] for run in g.runs.values()]) for g in of]
        known = [(score, i) for i, score in enumerate(scores) if score is not None]
        if not known:
            raise SweepError(f"{folder}: no draw of {group.name} has a score with every seed")
        pick = max if measure.quantity.larger else min
        score, best = pick(known, key=lambda pair: pair[0])
        best_of = of[best]
        found[group.name] = Tuned(
            best_of.says, dict(best_of.settings), best, len(known), score, scores[0]
        )
    return found


def _mean(measure: Measure, runs: Sequence[Run]) -> float | None:
    scores = [measure.of(run) if run.finished else None for run in runs]
    known = [score for score in scores if score is not None]
    return statistics.mean(known) if len(known) == len(scores) else None


def words_of(plan: Manifest, tuned: Mapping[str, Tuned]) -> dict[str, list[str]]:
    """Return the overrides of each arm's best draw; an arm that must equal another has that one's."""
    words = {name: [f"{k}={v}" for k, v in best.settings.items()] for name, best in tuned.items()}
    by_run = {run: group.name for group in plan.groups for run in group.runs.values()}
    for identity in plan.identities:
        copy, model = (by_run[run] for run in identity.runs)
        words[copy] = words.get(model, [])
    return words
