"""Does the effect of a treatment grow or vanish with scale? The statistics of a ladder.

    x_r     log10 of the training FLOPs of the baseline's run at rung r
    d_sr    difference of seed s at rung r, treatment minus baseline
    b_s     least-squares slope of seed s: sum_r (x_r - mean x) d_sr / sum_r (x_r - mean x)^2
    b       mean of the b_s of the n seeds that have every rung, by Student's t with n - 1 degrees of freedom

A seed gives one number, and seeds are independent. So the test holds whatever the variances of the rungs, and
however the rungs of a seed go together. The slope is the change for each tenfold compute; whether a straight
line describes the rungs is another question, which the figure answers. Words:

    grows            the slope is not zero, and at the largest rung there is an effect, on the side to which
                     the slope leads
    vanishes         the slope is not zero, and at the smallest rung there is an effect, on the other side
    changes sign     both: a gain at one end of the ladder, a harm at the other
    shifts           the slope is not zero, and neither: no effect is shown where it would have to be
    no trend shown   the slope is not shown to differ from zero

A word claims what all of its tests show, each two-sided at 0.05, so its p is the largest of them
(intersection-union), and Holm's correction goes over the treatments. Runs that are out of a comparison are
out of its trend. A trend is `unstable` if runs of the treatment failed, or others diverged than of the
baseline; it is `not comparable` if the comparison at a rung is not the planned one, or the rungs differ in
what comparisons must have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from jepa_lm.study import formatting as words
from jepa_lm.study import sentences, statistics
from jepa_lm.study.arm_result import seed_order
from jepa_lm.study.comparable import apart
from jepa_lm.study.family import Adjusted, Claim, adjust
from jepa_lm.study.ladder import FEWEST_RUNGS, climbs
from jepa_lm.study.manifest import RUNG, Manifest
from jepa_lm.study.paired import t_interval
from jepa_lm.study.power import ALPHA, MINIMUM_PAIRS
from jepa_lm.study.power_law import Laws, laws
from jepa_lm.study.statistics import Effect
from jepa_lm.study.treatments import Treatment

Word = Literal[
    "grows",
    "vanishes",
    "changes sign",
    "shifts",
    "no trend shown",
    "too few seeds",
    "unstable",
    "not comparable",
]
SHOWN: tuple[Word, ...] = ("grows", "vanishes", "changes sign", "shifts")
"""Words that claim a slope."""


def slopes(x: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Return the least-squares slopes on x [rungs] of differences [..., rungs]; [...]."""
    apart_from_mean = x - x.mean()
    centred = differences - differences.mean(axis=-1, keepdims=True)
    return centred @ apart_from_mean / (apart_from_mean @ apart_from_mean)


def paired_rungs(effects: Sequence[Effect]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the seeds that have every rung, and their differences [seeds, rungs]."""
    by_seed = [dict(zip(e.seeds, e.differences, strict=True)) for e in effects]
    seeds = tuple(seed for seed in effects[0].seeds if all(seed in of for of in by_seed))
    found = [[of[seed] for of in by_seed] for seed in seeds]
    return seeds, np.array(found, dtype=np.float64).reshape(-1, len(effects))


def slope_of(x: np.ndarray, effects: Sequence[Effect]) -> Effect:
    """Return the slopes of the seeds against zero, for each tenfold compute.

    Args:
        x: log10 of the FLOPs [rungs]; with fewer than three different ones, no seed has a slope.
        effects: differences from one control at each rung.
    """
    seeds, differences = paired_rungs(effects)
    enough = len(set(x)) >= FEWEST_RUNGS
    by_seed = dict(zip(seeds, slopes(x, differences).tolist(), strict=True)) if enough else {}
    return statistics.effect(
        by_seed,
        dict.fromkeys(by_seed, 0.0),
        margin=effects[0].margin,
        unit=f"{effects[0].unit} per tenfold compute",
        larger=effects[0].larger,
        resamples=0,
    )


class Said(NamedTuple):
    """What the scores say of a trend, and the p of saying it."""

    word: Word
    p: float | None


def said(slope: Effect, first: Effect, last: Effect) -> Said:
    """Return the word on a trend by itself; the top of the file defines the words.

    Args:
        slope: of the seeds' slopes against zero. first, last: at the smallest and the largest rung.
    """
    if slope.n < MINIMUM_PAIRS or slope.p_paired is None or slope.mean is None:
        return Said("too few seeds", None)
    if not slope.p_paired < ALPHA:
        return Said("no trend shown", slope.p_paired)
    ends = _shown(first, -slope.mean), _shown(last, slope.mean)
    by_ends: dict[tuple[bool, bool], Word] = {
        (False, True): "grows",
        (True, False): "vanishes",
        (True, True): "changes sign",
        (False, False): "shifts",
    }
    of_ends = [e.p or 0.0 for e, shown in zip((first, last), ends, strict=True) if shown]
    return Said(by_ends[ends], max([slope.p_paired, *of_ends]))


def _shown(effect: Effect, side: float) -> bool:
    """Return whether an effect is shown on the side of zero that a number is on."""
    if effect.n < MINIMUM_PAIRS or effect.mean is None or effect.p is None:
        return False
    return effect.p < ALPHA and effect.mean * side > 0


@dataclass(frozen=True)
class Point:
    """A treatment at a rung."""

    rung: str
    log_flops: float
    """log10 of the training FLOPs of the baseline's run."""
    treatment: Treatment

    @property
    def effect(self) -> Effect:
        """Difference from the baseline."""
        return self.treatment.main.effect


@dataclass(frozen=True)
class Trend:
    """A treatment at every rung of a ladder, smallest first."""

    points: tuple[Point, ...]
    apart: tuple[str, ...]
    """Why there is no trend: comparisons that were not as planned, or rungs that are not comparable."""
    word: Word = "no trend shown"
    sentence: str = ""
    adjusted: Adjusted | None = None
    """p of the word, corrected for the other treatments."""

    @cached_property
    def label(self) -> str:
        """Label of the treatment, without its rung."""
        arm = self.points[0].treatment.arm
        settings = {key: value for key, value in arm.group.settings.items() if key != RUNG}
        return replace(arm, group=replace(arm.group, settings=settings)).label

    @property
    def x(self) -> np.ndarray:
        """log10 of the FLOPs [rungs]."""
        return np.array([point.log_flops for point in self.points])

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seeds that have every rung, on both sides."""
        return paired_rungs([p.effect for p in self.points])[0]

    @property
    def differences(self) -> np.ndarray:
        """Treatment minus baseline [seeds, rungs]."""
        return paired_rungs([p.effect for p in self.points])[1]

    @cached_property
    def slope(self) -> Effect:
        """Slope of the differences from the baseline, which the word is about."""
        return slope_of(self.x, [p.effect for p in self.points])

    @cached_property
    def others(self) -> dict[str, Effect]:
        """Slopes of the differences from the other controls that are there at every rung, by arm."""
        found: dict[str, list[Effect]] = {}
        for point in self.points:
            for a in point.treatment.against:
                if a is not point.treatment.main:
                    found.setdefault(a.control.name.rpartition("/")[2], []).append(a.effect)
        whole = {name: of for name, of in found.items() if len(of) == len(self.points)}
        return {name: slope_of(self.x, of) for name, of in whole.items()}

    @cached_property
    def scores(self) -> np.ndarray:
        """Scores of treatment and baseline [2, seeds, rungs]."""
        arms = [(p.treatment.arm, p.treatment.main.control) for p in self.points]
        found = [
            [[arm.scores[seed] for arm in side] for seed in self.seeds]
            for side in zip(*arms, strict=True)
        ]
        return np.array(found)

    @cached_property
    def laws(self) -> Laws | None:
        """Power laws of the losses; None without a loss, four rungs or two seeds."""
        enough = self.slope.n > 1
        is_loss = self.points[0].treatment.arm.measure.is_loss
        return laws(self.x, *self.scores) if enough and is_loss else None

    def line(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, lower and upper end (95 %) of the seeds' lines at each x [places]."""
        slope = slopes(self.x, self.differences)
        lines = self.differences.mean(axis=-1)[:, None] + slope[:, None] * (x - self.x.mean())
        low, high = t_interval(lines.T)
        return lines.mean(axis=0), low, high


def trends(plan: Manifest, treatments: Sequence[Treatment]) -> Iterator[Trend]:
    """Judge the trends of a study with a ladder, as one family; none without a ladder."""
    by_name = {treatment.arm.name: treatment for treatment in treatments}
    found = [_climbed(plan, climb, by_name) for climb in climbs(plan)]
    alone = [said(t.slope, t.points[0].effect, t.points[-1].effect) for t in found]
    adjusted = adjust(
        {
            str(i): Claim(claim.p, None, trend.slope.differences)
            for i, (trend, claim) in enumerate(zip(found, alone, strict=True))
        }
    )
    for i, (trend, claim) in enumerate(zip(found, alone, strict=True)):
        yield _judged(trend, claim.word, adjusted[str(i)])


def _climbed(plan: Manifest, climb: Mapping[str, str], by_name: Mapping[str, Treatment]) -> Trend:
    """Return a trend without a word."""
    points = tuple(Point(rung, plan.log_flops(of), by_name[of]) for rung, of in climb.items())
    arms = [arm for p in points for arm in (p.treatment.arm, p.treatment.main.control)]
    across = apart({arm.name: list(arm.runs.values()) for arm in arms}, None)
    baselines = {p.treatment.main.comparison.role for p in points}
    return Trend(
        points,
        (
            *(f"at {p.rung}: {text}" for p in points for text in p.treatment.apart),
            *(f"the rungs differ in {text}" for text in across),
            *([f"the rungs have baselines {', '.join(baselines)}"] if len(baselines) > 1 else []),
        ),
    )


def _judged(trend: Trend, word: Word, adjusted: Adjusted) -> Trend:
    """Return a trend with its word and sentence."""
    first, last = trend.points[0], trend.points[-1]
    ends = (first.rung, first.effect), (last.rung, last.effect)
    told = [sentences.trend(word, trend.slope, *ends, ALPHA / adjusted.treatments)]
    if word in SHOWN and not (adjusted.difference is not None and adjusted.difference < ALPHA):
        word = "no trend shown"
        told.append(sentences.of_several(adjusted))
    diverged = [
        f"At {p.rung}: {p.treatment.diverged}" for p in trend.points if p.treatment.diverged
    ]
    if diverged:
        word = "unstable"
    some = {seed for point in trend.points for seed in point.effect.seeds}
    if left_out := sorted(some.difference(trend.seeds), key=seed_order):
        told.append(f"Seeds that lack a rung are left out: {', '.join(left_out)}.")
    told.append(
        f"Measured from {words.flops(first.log_flops)} to {words.flops(last.log_flops)} FLOPs of the "
        f"baseline's run ({first.rung} to {last.rung}); this says nothing about larger scale."
    )
    return replace(
        trend,
        word="not comparable" if trend.apart else word,
        sentence=" ".join([*diverged, *told]),
        adjusted=adjusted,
    )
