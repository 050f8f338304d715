"""Counts of seeds that solved their task, where a run solves about all of its rows or about none.

Fisher    with k of n runs solved on one side and K of N on both, the share of the ways to choose K runs
          of N that have k or more among the n (Fisher 1935): one-sided
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from jepa_lm.study.power import ALPHA

SOLVED = 0.95
"""A run has solved its task if its share is larger."""
LEAST_SEEDS = 4
"""Seeds of each side without which no counts give p < 0.05: 3 of 3 against 0 of 3 give just that."""


class SolvedSeeds(NamedTuple):
    """Runs that solved their task, of all runs, on both sides."""

    solved: int
    of: int
    control: int
    of_control: int

    @property
    def more(self) -> bool:
        """Whether the treatment solves a larger share of its runs."""
        return self.solved * self.of_control > self.control * self.of

    @property
    def p(self) -> float:
        """p of Fisher's test, one-sided towards the side that solves more."""
        ours, theirs = self[:2], self[2:]
        return fisher_test(*ours, *theirs) if self.more else fisher_test(*theirs, *ours)

    @property
    def enough(self) -> int | None:
        """Return how many solved runs of the treatment give a p below 0.05; None if no count does."""
        counts = range(self.of + 1)
        return next((k for k in counts if fisher_test(k, *self[1:]) < ALPHA), None)


def solved_seeds(treatment: Iterable[float], control: Iterable[float]) -> SolvedSeeds:
    """Count the runs of both sides, given their shares, that solved their task."""
    sides = [[share > SOLVED for share in shares] for shares in (treatment, control)]
    return SolvedSeeds(*(count for side in sides for count in (sum(side), len(side))))


def fisher_test(solved: int, of: int, others: int, of_others: int) -> float:
    """One-sided p, H0: a run is solved as often among `of` runs as among `of_others`."""
    in_all = solved + others
    more = range(solved, min(of, in_all) + 1)
    ways = sum(math.comb(of, i) * math.comb(of_others, in_all - i) for i in more)
    return ways / math.comb(of + of_others, in_all)
