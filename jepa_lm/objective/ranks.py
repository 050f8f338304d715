"""Rows of all ranks as one batch, with gradients, for losses that are statistics over a batch.

Every rank computes the same statistic of the joint rows, so the gradient of a rank's own rows needs
no communication: it is the local gradient times the number of ranks, which DDP's average over ranks
divides out again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _JointRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        world = dist.get_world_size()
        parts = [torch.empty_like(x) for _ in range(world)]
        dist.all_gather(parts, x.contiguous())
        ctx.rank, ctx.world, ctx.rows = dist.get_rank(), world, len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        start = ctx.rank * ctx.rows
        return grad[start : start + ctx.rows] * ctx.world


def joint_rows(x: Tensor) -> Tensor:
    """[B, ...] of this rank -> [W B, ...] of all ranks, in rank order; unchanged for one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _JointRows.apply(x)
