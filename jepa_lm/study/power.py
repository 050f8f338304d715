"""Power of the paired t-test: what difference a number of seeds would find, and how many find a difference.

The test statistic follows the noncentral t with noncentrality |effect| sqrt(n) / s, for n differences with
standard deviation s.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache

from scipy import optimize, stats

ALPHA = 0.05
"""Level of the two-sided test; intervals cover 1 - ALPHA."""
POWER = 0.8
"""Power assumed for the smallest detectable difference and the number of seeds needed."""
MINIMUM_PAIRS = 3
"""Pairs needed for a verdict: two leave one degree of freedom, hence intervals of 9 s each way."""
MOST_SEEDS = 1000
"""Largest number of seeds needed that is reported."""


def power(effect: float, std: float, n: int, alpha: float = ALPHA) -> float:
    """Return the probability that the two-sided paired t-test finds a true mean difference.

    Args:
        effect: the true mean difference, of either sign.
        std: standard deviation of the differences, in the unit of `effect`.
        n: number of pairs.
        alpha: level of the test.

    Raises:
        ValueError: the std is not above 0, or there are fewer than 2 pairs.
    """
    if not std > 0 or n < 2:
        raise ValueError(f"std={std}, n={n}: needs a std above 0 and 2 pairs or more")
    return _power(abs(effect) / std * math.sqrt(n), n, alpha)


def _power(noncentrality: float, n: int, alpha: float = ALPHA) -> float:
    critical = stats.t.isf(alpha / 2, n - 1)
    # The far tail by symmetry, because scipy's cdf is NaN there.
    tails = stats.nct.sf(critical, n - 1, [noncentrality, -noncentrality])
    return float(tails.sum())


@cache
def _noncentrality(n: int, alpha: float, wanted: float = POWER) -> float:
    """Return the noncentrality at which n pairs have this power."""
    highest = 10 * stats.t.isf(alpha / 2, n - 1) + 10
    return float(optimize.brentq(lambda nc: _power(nc, n, alpha) - wanted, 0.0, highest))


def smallest_effect(std: float, n: int, alpha: float, tests: int = 1) -> float:
    """Return the true mean difference that n pairs find in all of these tests with a probability of `POWER`.

    By Bonferroni's bound on what the tests miss together, so with several of them the probability is higher.
    """
    missed = (1 - POWER) / tests
    return _noncentrality(n, alpha, 1 - missed) * std / math.sqrt(n)


def seeds_needed(mean: float, std: float, alpha: float, tests: int = 1) -> int | None:
    """Return the pairs that find this true mean difference with a probability of `POWER`.

    It is at least `MINIMUM_PAIRS`; None above `MOST_SEEDS`.

    Args:
        tests: number of tests that must all find theirs, see `smallest_effect`.
    """

    def enough(n: int) -> bool:
        return abs(mean) / std * math.sqrt(n) >= _noncentrality(n, alpha, 1 - (1 - POWER) / tests)

    if not enough(MOST_SEEDS):
        return None
    return bisect_left(range(MOST_SEEDS), True, lo=MINIMUM_PAIRS, key=enough)
