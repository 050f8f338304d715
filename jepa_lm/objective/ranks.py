"""Sums over all ranks with gradients, for losses that are statistics of the joint batch.

What the ranks exchange are sums over rows, never the rows: each rank works on its own share.

Gradients follow one convention. Every rank computes the same loss L of the joint batch, and DDP
averages gradients over the W ranks; so a rank's backward pass has to give W times dL / d(its rows).
That is the gradient of the sum of all ranks' losses, so a sum S = sum_r x_r hands each x_r the sum of
the ranks' gradients at S.
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
    """The sum of all ranks' x, of equal shape, on every rank; x itself for one process.

    Args:
        x: any shape.
        replicated: nothing but the loss is computed from the sum, so that its gradient is the same on
            every rank: the sum of gradients is then W times a rank's own, and the backward pass needs
            no communication. It must be false where the sum meets a rank's own rows again
            (standardised rows), since gradients at it differ there; the backward pass adds them up.
    """
    return x if world_size() == 1 else _SumOverRanks.apply(x, replicated)
