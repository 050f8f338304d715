"""The statistics of a difference of scores over seeds; the tests are in `paired`, power is in `power`.

Both sides of a comparison are trained with the same seeds, so they share the data and the random draws of
a seed; the tests use d_i = treatment_i - control_i, in which the shared part cancels. A negative difference
is a gain, or a positive one where larger is better. Student's t assumes that the differences are normal; a
handful of seeds cannot show whether they are. Where a run solves about all rows or about none, they are not,
and `jepa_lm.study.solved` counts seeds instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from jepa_lm.study.anytime import TAIL as TAIL_AT_ANY_TIME
from jepa_lm.study.anytime import anytime_equivalence_test, anytime_test
from jepa_lm.study.paired import (
    below_test,
    bootstrap_interval,
    equivalence_test,
    paired_test,
    sign_flip_test,
    skewness,
    t_interval,
    tail_test,
)
from jepa_lm.study.power import ALPHA, MINIMUM_PAIRS, seeds_needed
from jepa_lm.study.solved import SolvedSeeds, solved_seeds

MARGIN = 0.005
"""Largest difference in bits per byte, or in nats per token of what is not text, that does not matter."""
RULE_NATS = 0.005
"""Nats per token by which a record of the challenge must be beaten..."""
RULE_ALPHA = 0.01
"""...at this level."""
TAIL = 4
"""Factor on the p of the tail test: so five exponential differences at the margin are called equal in 5 % of
studies."""
SKEWED = 1.0
"""Skewness from which on a report tells of a tail."""


@dataclass(frozen=True)
class Effect:
    """A treatment compared with a control. None means too few seeds, or no spread to test against."""

    seeds: tuple[str, ...] = ()
    """Seeds that both sides have."""
    differences: tuple[float, ...] = ()
    """Treatment - control for each of these seeds."""
    margin: float = MARGIN
    """Margin of the equivalence test."""
    unit: str = "BPB"
    """Unit of differences and margin."""
    larger: bool = False
    """Whether larger scores are better."""
    solved: SolvedSeeds | None = None
    """Counts that decide in place of the differences; None where the differences do."""
    p_fisher: float | None = None
    """Fisher's exact test of these counts, one-sided on the side of what was seen."""
    mean: float | None = None
    """Mean of the differences."""
    std: float | None = None
    """Standard deviation of the differences, BPB."""
    mean_nats: float | None = None
    """Mean difference in nats per token."""
    interval: tuple[float, float] | None = None
    """95 % interval of the mean, from Student's t."""
    bootstrap: tuple[float, float] | None = None
    """95 % interval of the mean, from resampling; too narrow for few seeds, see `bootstrap_interval`."""
    p_paired: float | None = None
    """Two-sided, H0: the mean is 0."""
    p_flips: float | None = None
    """Two-sided by sign flips, H0: the differences are symmetric about 0."""
    p_welch: float | None = None
    """Two-sided and unpaired, over every seed of each side; H0: both have the same mean."""
    p_rule: float | None = None
    """One-sided, H0: the gain is `RULE_NATS` per token or less."""
    p_rule_harm: float | None = None
    """One-sided, H0: the harm is `RULE_NATS` per token or less."""
    p_equivalent: float | None = None
    """H0: the mean is outside +-margin."""
    p_tail: float | None = None
    """The same, allowing for a long tail on one side."""
    tail_factor: float = TAIL
    """Factor on `p_tail` for a verdict."""
    p_anytime: float | None = None
    """As `p_paired`, however often one looks; None where that is not asked."""
    p_anytime_same: float | None = None
    """As `p_equivalent`, however often one looks."""
    seeds_needed: int | None = None
    """Pairs that would find the observed mean in 8 studies of 10, at least `MINIMUM_PAIRS`; None above
    `MOST_SEEDS`. It depends on the observed spread, which few seeds estimate poorly."""

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.seeds)

    @property
    def p(self) -> float | None:
        """p of the test that decides."""
        if self.solved is not None:
            return self.p_fisher
        return self.p_paired if self.p_anytime is None else self.p_anytime

    @property
    def meets_rule(self) -> bool:
        """Whether the gain or the harm is so large that the challenge would take it for real."""
        return any(p is not None and p < RULE_ALPHA for p in (self.p_rule, self.p_rule_harm))

    @property
    def p_same(self) -> float | None:
        """p of the two tests that both must call the sides equal."""
        same = self.p_equivalent if self.p_anytime_same is None else self.p_anytime_same
        if same is None or self.p_tail is None:
            return None
        return max(same, min(1.0, self.tail_factor * self.p_tail))

    @property
    def gains(self) -> bool:
        """Whether the treatment is on the better side."""
        if self.solved is not None:
            return self.solved.more
        return self.mean is not None and (self.mean > 0 if self.larger else self.mean < 0)

    @property
    def tail(self) -> float | None:
        """Skewness away from the side of the mean, if large; a tail there is seldom seen whole."""
        if not self.std or self.mean is None or self.solved is not None:
            return None
        skewed = float(skewness(np.array(self.differences))) * -math.copysign(1.0, self.mean)
        return skewed if skewed > SKEWED else None

    @property
    def identical(self) -> bool:
        """True if every pair has the same score on both sides."""
        return self.n > 0 and not any(self.differences)


def effect(
    treatment: Mapping[str, float],
    control: Mapping[str, float],
    *,
    nll_treatment: Mapping[str, float] | None = None,
    nll_control: Mapping[str, float] | None = None,
    margin: float = MARGIN,
    unit: str = "BPB",
    larger: bool = False,
    bimodal: bool = False,
    anytime: bool = False,
    tail: float = TAIL,
    resamples: int = 10_000,
) -> Effect:
    """Compare two groups of runs.

    Scores without a partner count for Welch's test only. If all pairs are equal, the two sides are the same
    computation: p = 1, and equivalent. If all differ by the same amount (up to rounding), seeds change
    nothing, n of them are worth one, and nothing can be tested: every p but Welch's is None.

    Args:
        treatment: scores by seed.
        control: scores by seed.
        nll_treatment: nats per token by seed, for the challenge's rule.
        nll_control: nats per token of the control by seed.
        margin: difference in either direction that counts as none, above 0.
        unit: of the scores, for sentences. larger: whether larger scores are better.
        bimodal: count the runs that solved their task, and test nothing else.
        anytime: decide by tests that hold however often one looks.
        tail: factor on the p of the tail test, where looks are planned.
        resamples: number of bootstrap resamples; 0 skips the bootstrap.

    Raises:
        ValueError: a score is NaN or infinite (a run that diverged has no score; the caller must leave it
            out and report it), or the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin}: must be above 0")
    seeds, differences = _pairs(treatment, control)
    _, nats = _pairs(nll_treatment or {}, nll_control or {})
    n = len(seeds)
    found = Effect(
        seeds=seeds,
        differences=tuple(differences.tolist()),
        margin=margin,
        unit=unit,
        larger=larger,
        mean=float(differences.mean()) if n else None,
        std=_std(differences) if n > 1 else None,
        mean_nats=float(nats.mean()) if len(nats) else None,
        p_welch=_welch(treatment, control),
        p_rule=_rule(nats),
        p_rule_harm=_rule(-nats),
    )
    if bimodal:
        counts = solved_seeds(treatment.values(), control.values())
        return replace(found, p_welch=None, solved=counts, p_fisher=counts.p)
    if n > 1 and found.identical:
        none = (0.0, 0.0)
        found = replace(found, interval=none, bootstrap=none, p_paired=1.0, p_flips=1.0)
        return replace(found, p_equivalent=0.0, p_tail=0.0)
    if not found.std or found.mean is None:
        return found
    low, high = t_interval(differences)
    asked = anytime and n >= MINIMUM_PAIRS
    return replace(
        found,
        interval=(float(low), float(high)),
        bootstrap=bootstrap_interval(differences, resamples) if n >= MINIMUM_PAIRS else None,
        p_paired=float(paired_test(differences)),
        p_flips=sign_flip_test(differences),
        p_equivalent=float(equivalence_test(differences, margin)),
        p_tail=float(tail_test(differences, margin)),
        tail_factor=TAIL_AT_ANY_TIME if asked else tail,
        p_anytime=float(anytime_test(differences)) if asked else None,
        p_anytime_same=float(anytime_equivalence_test(differences, margin)) if asked else None,
        seeds_needed=seeds_needed(found.mean, found.std, ALPHA),
    )


def _pairs(
    treatment: Mapping[str, float], control: Mapping[str, float]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the common seeds and the differences [n]; spreads and means within rounding become 0."""
    for seed, score in [*treatment.items(), *control.items()]:
        if not math.isfinite(score):
            raise ValueError(f"seed {seed}: has a score of {score}; leave out runs without a score")
    seeds = tuple(sorted(treatment.keys() & control.keys(), key=lambda s: (len(s), s)))
    sides = np.array([[treatment[s], control[s]] for s in seeds], dtype=np.float64).reshape(-1, 2)
    differences = sides[:, 0] - sides[:, 1]
    rounding = _rounding(sides)
    differences[np.abs(differences) <= rounding] = 0.0
    if len(seeds) > 1 and np.ptp(differences) <= rounding:
        differences[:] = differences[0]
    return seeds, differences


def _rounding(scores: np.ndarray) -> float:
    """Return the difference of such scores below which it is float64 rounding."""
    return 8 * np.finfo(np.float64).eps * float(np.abs(scores).max(initial=0.0))


def _std(values: np.ndarray) -> float:
    """Standard deviation of values [n], n > 1; exactly 0 for equal values, without rounding."""
    return float(values.std(ddof=1)) if np.ptp(values) else 0.0


def _welch(treatment: Mapping[str, float], control: Mapping[str, float]) -> float | None:
    sides = [np.array(sorted(side.values()), dtype=np.float64) for side in (treatment, control)]
    if min(map(len, sides)) < 2:
        return None
    rounding = _rounding(np.concatenate(sides))
    if all(np.ptp(side) <= rounding for side in sides):
        return 1.0 if abs(sides[0][0] - sides[1][0]) <= rounding else None
    return float(stats.ttest_ind(*sides, equal_var=False).pvalue)


def _rule(nats: np.ndarray) -> float | None:
    """Return p of the challenge's rule for differences in nats per token [n]."""
    if len(nats) < 2:
        return None
    if not nats.any():
        return 1.0
    return float(below_test(nats, -RULE_NATS)) if np.ptp(nats) else None
