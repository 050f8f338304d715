"""Statistics of a difference of scores over seeds: paired tests, intervals, Holm; power is in `power`.

Both sides of a comparison are trained with the same seeds, so they share the data and the random draws of
a seed; the tests use d_i = treatment_i - control_i, in which the shared part cancels. With m the mean of
n differences and s their standard deviation (n - 1 in the denominator):

    paired t-test   t = m sqrt(n) / s, Student with n - 1 degrees of freedom
    equivalence     the larger p of the one-sided tests of m < margin and m > -margin (Schuirmann 1987)
    Holm            p of rank i among k, smallest first, times k - i + 1, kept in order (Holm 1979)

A negative difference is a gain, or a positive one where larger is better. Student's t assumes that the
differences are normal; a handful of seeds cannot show whether they are. Where a run solves about all rows or
about none, they are not, and `jepa_lm.study.solved` counts seeds instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from jepa_lm.study.power import ALPHA, MINIMUM_PAIRS, seeds_needed, smallest_effect
from jepa_lm.study.solved import SolvedSeeds, solved_seeds

MARGIN = 0.005
"""Largest difference in bits per byte, or in nats per token of what is not text, that does not matter."""
RULE_NATS = 0.005
"""Nats per token by which a record of the challenge must be beaten..."""
RULE_ALPHA = 0.01
"""...at this level."""


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
    p_holm: float | None = None
    """`p` corrected for the other comparisons; None until `holm` fills it in, which also computes
    `smallest_effect` and `seeds_needed` at the level of its strictest step."""
    p_welch: float | None = None
    """Two-sided and unpaired, over every seed of each side; H0: both have the same mean."""
    p_rule: float | None = None
    """One-sided, H0: the gain is `RULE_NATS` per token or less."""
    p_equivalent: float | None = None
    """H0: the mean is outside +-margin."""
    smallest_effect: float | None = None
    """Mean difference that this many seeds with this spread would find in 8 studies of 10."""
    seeds_needed: int | None = None
    """Pairs that would find the observed mean in 8 studies of 10, at least `MINIMUM_PAIRS`; None above
    `MOST_SEEDS`. Both numbers depend on the observed spread, which few seeds estimate poorly."""

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.seeds)

    @property
    def p(self) -> float | None:
        """p of the test that decides, before `holm`."""
        return self.p_paired if self.solved is None else self.p_fisher

    @property
    def gains(self) -> bool:
        """Whether the treatment is on the better side."""
        if self.solved is not None:
            return self.solved.more
        return self.mean is not None and (self.mean > 0 if self.larger else self.mean < 0)

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
    )
    if bimodal:
        counts = solved_seeds(treatment.values(), control.values())
        return replace(found, p_welch=None, solved=counts, p_fisher=counts.p)
    if n > 1 and found.identical:
        none = (0.0, 0.0)
        return replace(found, interval=none, bootstrap=none, p_paired=1.0, p_equivalent=0.0)
    if not found.std or found.mean is None:
        return found
    low, high = t_interval(differences)
    return replace(
        found,
        interval=(float(low), float(high)),
        bootstrap=bootstrap_interval(differences, resamples) if n >= MINIMUM_PAIRS else None,
        p_paired=float(paired_test(differences)),
        p_equivalent=float(equivalence_test(differences, margin)),
        **_prospects(found, ALPHA),
    )


def paired_test(differences: np.ndarray) -> np.ndarray:
    """Two-sided p, H0: the mean is 0; differences [..., n], p [...]."""
    mean, error, freedom = _mean_and_error(differences)
    return 2 * stats.t.sf(np.abs(mean / error), freedom)


def below_test(differences: np.ndarray, bound: float) -> np.ndarray:
    """One-sided p, H0: the mean is `bound` or more; differences [..., n], p [...]."""
    mean, error, freedom = _mean_and_error(differences)
    return stats.t.cdf((mean - bound) / error, freedom)


def equivalence_test(differences: np.ndarray, margin: float) -> np.ndarray:
    """Larger p of two one-sided tests, H0: the mean is at +-margin or outside; [..., n] to [...]."""
    return np.maximum(below_test(differences, margin), below_test(-differences, margin))


def t_interval(differences: np.ndarray) -> np.ndarray:
    """Student's 95 % interval of the mean; differences [..., n], low and high [2, ...]."""
    mean, error, freedom = _mean_and_error(differences)
    half = stats.t.isf(ALPHA / 2, freedom) * error
    return np.stack([mean - half, mean + half])


def _mean_and_error(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the mean, its standard error, and the degrees of freedom."""
    n = differences.shape[-1]
    error = differences.std(axis=-1, ddof=1) / math.sqrt(n)
    return differences.mean(axis=-1), error, n - 1


def bootstrap_interval(differences: np.ndarray, resamples: int) -> tuple[float, float] | None:
    """Percentile bootstrap interval (95 %) of the mean of differences [n]; deterministic.

    Percentile rather than BCa (Efron 1987): a mean has no bias to correct, and BCa would estimate the
    skewness from a handful of values, which is noise. No bootstrap can see beyond the observed values: for
    normal differences this one covers about 72 % at n = 3, 84 % at 5 and 90 % at 10. It shows whether
    Student's interval depends on the shape of the differences; verdicts do not use it.
    """
    if not resamples:
        return None
    # Sorted, so that the names and the order of the seeds do not matter.
    drawn = np.random.default_rng(0).integers(len(differences), size=(resamples, len(differences)))
    means = np.sort(differences)[drawn].mean(axis=-1)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def holm(effects: Mapping[str, Effect]) -> dict[str, Effect]:
    """Fill in `p_holm` by Holm's step-down over the comparisons that have a p.

    `smallest_effect` and `seeds_needed` use the strictest level, ALPHA / comparisons.
    """
    order = sorted((e.p, name) for name, e in effects.items() if e.p is not None)
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (p, name) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[name] = largest
    return {
        name: replace(e, p_holm=adjusted.get(name), **_prospects(e, ALPHA / max(len(order), 1)))
        for name, e in effects.items()
    }


def _prospects(found: Effect, alpha: float) -> dict[str, Any]:
    """Return `smallest_effect` and `seeds_needed` for tests at this level."""
    if not found.std or found.mean is None or found.solved is not None:
        return {}
    return {
        "smallest_effect": smallest_effect(found.std, found.n, alpha),
        "seeds_needed": seeds_needed(found.mean, found.std, alpha),
    }


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
