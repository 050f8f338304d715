"""Which rank orthogonalises which matrices, and the one collective that brings the results to all.

Under DDP every rank holds the same gradients, momenta and weights, so Newton-Schulz may be divided: a
rank works on its matrices only and one all-gather spreads the results. The heaviest matrix that is left
goes to the least loaded rank: the largest load exceeds the smallest by one matrix at most, and the best
possible by a third at most (Graham, "Bounds on multiprocessing timing anomalies", 1969).
Legend: W ranks, R rows, C columns, N numbers that each rank sends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from jepa_lm.utils.collectives import world_size


class Matrix(NamedTuple):
    """What the plan must know of a matrix: its Muon group by position, [R, C], its iterations."""

    group: int
    rows: int
    cols: int
    ns_steps: int

    @property
    def flops(self) -> int:
        """Of Newton-Schulz: in each iteration X X^T, A A and B X, with X the wide way round."""
        small, large = sorted((self.rows, self.cols))
        return self.ns_steps * (4 * small**2 * large + 2 * small**3)


@dataclass(frozen=True)
class Plan:
    """Who orthogonalises what. Matrices are given by their position in the list that was planned.

    Args:
        kinds: matrices of one group and shape, over all ranks.
        batches: by rank, the part of each kind that it orthogonalises as one batch.
        places: of each matrix, its rank and where its R C numbers begin in what that rank sends.
        numbers: N, what the fullest rank sends; the others fill up to it.
    """

    kinds: tuple[tuple[int, ...], ...]
    batches: tuple[tuple[tuple[int, ...], ...], ...]
    places: tuple[tuple[int, int], ...]
    numbers: int


@lru_cache(maxsize=32)
def plan_shares(matrices: tuple[Matrix, ...], ranks: int) -> Plan:
    """Divide matrices among ranks by FLOPs; the same on every rank, as nothing else is read.

    Kept for each set of matrices: a phase may leave some without a gradient, and phases return.
    """
    flops, numbers = [0] * ranks, [0] * ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for i in sorted(range(len(matrices)), key=lambda i: (-matrices[i].flops, i)):
        rank = min(range(ranks), key=lambda rank: (flops[rank], numbers[rank], rank))
        shares[rank].append(i)
        flops[rank] += matrices[i].flops
        numbers[rank] += matrices[i].rows * matrices[i].cols
    batches = tuple(_kinds(matrices, sorted(share)) for share in shares)
    return Plan(
        kinds=_kinds(matrices, range(len(matrices))),
        batches=batches,
        places=_places(matrices, batches),
        numbers=max(numbers),
    )


def _kinds(matrices: tuple[Matrix, ...], which: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    found: dict[Matrix, list[int]] = defaultdict(list)
    for i in which:
        found[matrices[i]].append(i)
    return tuple(tuple(kind) for kind in found.values())


def _places(
    matrices: tuple[Matrix, ...], batches: tuple[tuple[tuple[int, ...], ...], ...]
) -> tuple[tuple[int, int], ...]:
    """Each rank sends its matrices one behind the other, batch by batch."""
    places: dict[int, tuple[int, int]] = {}
    for rank, share in enumerate(batches):
        begin = 0
        for i in (i for batch in share for i in batch):
            places[i] = (rank, begin)
            begin += matrices[i].rows * matrices[i].cols
    assert len(places) == len(matrices), "a matrix without a rank"
    return tuple(places[i] for i in range(len(matrices)))


def start_gather(mine: Tensor) -> tuple[Tensor, dist.Work]:
    """Send [N] of this rank and receive [W, N] of all, which may be read once the work was waited for."""
    everyone = mine.new_empty(world_size() * len(mine))
    # torch 2.13 renamed it; the old name warns there, the new one is missing in 2.11.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work = gather(everyone, mine, async_op=True)
    assert work is not None
    return everyone.view(-1, len(mine)), work
