"""Division of Newton-Schulz among ranks, and the collective that shares the results.

Under DDP every rank holds the same gradients, momenta and weights, so Newton-Schulz can be divided: each
rank orthogonalises its share of the matrices and one all-gather distributes the results. The costliest
remaining matrix goes to the least loaded rank: the largest load exceeds the smallest by at most one
matrix, and the optimum by at most a third (Graham, "Bounds on multiprocessing timing anomalies", 1969).
Legend: W ranks, R rows, C columns, N values that each rank sends.
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
    """A matrix as the plan sees it: index of its Muon group, rows R, columns C, iterations."""

    group: int
    rows: int
    cols: int
    ns_steps: int

    @property
    def flops(self) -> int:
        """FLOPs of Newton-Schulz: X X^T, A A and B X in each iteration, with X transposed to be wide."""
        small, large = sorted((self.rows, self.cols))
        return self.ns_steps * (4 * small**2 * large + 2 * small**3)


@dataclass(frozen=True)
class Plan:
    """Assignment of matrices to ranks. Matrices are identified by their index in the planned list.

    Args:
        kinds: indices of the matrices of each group and shape, over all ranks.
        batches: by rank, the part of each kind that the rank orthogonalises as one batch.
        places: for each matrix, its rank and the offset of its R C values in what that rank sends.
        numbers: N, the number of values of the fullest rank; the others pad to it.
    """

    kinds: tuple[tuple[int, ...], ...]
    batches: tuple[tuple[tuple[int, ...], ...], ...]
    places: tuple[tuple[int, int], ...]
    numbers: int


@lru_cache(maxsize=32)
def plan_shares(matrices: tuple[Matrix, ...], ranks: int) -> Plan:
    """Divide matrices among ranks by FLOPs. Every rank computes the same plan, as it has the same arguments.

    Plans are cached by their matrices: which ones have a gradient may change between phases.
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
    """Return the rank and offset of each matrix; a rank sends its matrices in the order of its batches."""
    places: dict[int, tuple[int, int]] = {}
    for rank, share in enumerate(batches):
        begin = 0
        for i in (i for batch in share for i in batch):
            places[i] = (rank, begin)
            begin += matrices[i].rows * matrices[i].cols
    assert len(places) == len(matrices), "a matrix without a rank"
    return tuple(places[i] for i in range(len(matrices)))


def start_gather(mine: Tensor) -> tuple[Tensor, dist.Work]:
    """Start sending this rank's [N] and receiving [W, N] of all ranks; wait for the work before reading."""
    everyone = mine.new_empty(world_size() * len(mine))
    # torch 2.13 renamed it; the old name warns there, and 2.11 lacks the new one.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work = gather(everyone, mine, async_op=True)
    assert work is not None
    return everyone.view(-1, len(mine)), work
