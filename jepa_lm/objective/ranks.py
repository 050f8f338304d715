"""Sums over all ranks with gradients, for losses that are statistics of the joint batch.

Ranks exchange sums over rows, and each works on its own share. Only what compares each row with every other
(InfoNCE) has to see the rows themselves.

Gradients follow one convention. Every rank computes the same loss L of the joint batch, and DDP
averages gradients over the W ranks, so the backward pass of a rank must give W dL / d(its rows).
This is the gradient of the sum of all ranks' losses, so the backward pass of S = sum_r x_r gives each
x_r the sum of the ranks' gradients at S.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jepa_lm.utils.collectives import world_size


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, replicated: bool) -> Tensor:
        ctx.replicated = replicated
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.replicated:
            return grad * world_size(), None
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total, None


def sum_over_ranks(x: Tensor, *, replicated: bool = False) -> Tensor:
    """Return the sum of x over all ranks, on every rank; x itself for a single process.

    Args:
        x: any shape, the same on every rank.
        replicated: only the loss is computed from the sum, so its gradient is the same on every
            rank: the sum of gradients is W times a rank's own, and the backward pass needs no
            communication. Set it to false where the sum is combined with a rank's own rows again
            (standardised rows): the gradients then differ, and the backward pass adds them up.
    """
    return x if world_size() == 1 else _SumOverRanks.apply(x, replicated)


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of ranks, with gradients to those of this rank.

    Args:
        rows: [R, ...], of the same shape on every rank.
    """
    if world_size() == 1:
        return rows
    empty = torch.zeros_like(rows)
    places = [rows if rank == dist.get_rank() else empty for rank in range(world_size())]
    return sum_over_ranks(torch.cat(places))
