"""The SIGReg statistic for evenly spaced knots, and its gradient along with it: for eager tensors.

cos and sin at the next knot follow from rotating the pair by dt u: 4 transcendentals per projection instead
of 4 K, including the backward pass. The gradient is computed in the same sweep, and nothing of size N S P K
is kept. The joint statistic of all ranks takes two sweeps: the first computes this rank's sums of cos and
sin, which are summed over ranks; the second the gradient. Reference: `sigreg.statistic_reference`.
Legend: N rows of a sample, K knots, C columns (a projection of a sample each).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jepa_lm.objective.ranks import world_size

SWEEP_ELEMENTS = 1 << 19
"""Projections per sweep, so that their five work buffers stay close to the processor's caches."""

Knots = Sequence[float]
"""Python floats: a compiler treats them as constants, and none has to be read from a device."""


def swept_statistic(u: Tensor, t: Knots, weights: Knots, *, joint: bool) -> Tensor:
    """Compute the statistic of projections u [N, ...]; arguments as in `sigreg.statistic`."""
    return (_JointStatistic if joint else _Statistic).apply(u, t, weights)


class _Statistic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, t: Knots, weights: Knots) -> Tensor:
        flat = u.detach().reshape(len(u), -1)  # [N, C]
        rows, columns = flat.shape
        grad = torch.empty_like(flat)
        total = torch.zeros((), dtype=u.dtype, device=u.device)
        for part in _parts(rows, columns):
            total += _sweep(flat[:, part], t, weights, out=grad[:, part])
        ctx.save_for_backward(grad.mul_(2.0 / (rows * columns)).view_as(u))
        return total / columns

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None


class _JointStatistic(torch.autograd.Function):
    """Statistic over the rows of all ranks; gradients at this rank's rows are scaled by W (`ranks`)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, t: Knots, weights: Knots) -> Tensor:
        flat = u.detach().reshape(len(u), -1)  # [N, C]
        rows, columns = flat.shape
        # One exchange for the sums and the number of rows: errors [K, 2, C] and count are views of totals.
        totals = u.new_empty(len(t) * 2 * columns + 1)
        errors, count = totals[:-1].view(len(t), 2, columns), totals[-1].fill_(rows)
        for part in _parts(rows, columns):
            _add_up(flat[:, part], t, out=errors[..., part])
        if world_size() > 1:
            dist.all_reduce(totals)
        errors.div_(count)
        for error, phi in zip(errors, _normal(t), strict=True):
            error[0].sub_(phi)
        grad = torch.empty_like(flat)
        for part in _parts(rows, columns):
            _descend(flat[:, part], t, weights, errors[..., part], out=grad[:, part])
        grad.mul_(2.0 * world_size() / columns).div_(count)
        ctx.save_for_backward(grad.view_as(u))
        return errors.square_().sum((1, 2)) @ errors.new_tensor(weights) / columns

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Yield the slices of columns that are swept at a time."""
    at_once = max(1, SWEEP_ELEMENTS // rows)
    for start in range(0, columns, at_once):
        yield slice(start, min(columns, start + at_once))


def _normal(t: Knots) -> list[float]:
    """Return phi at the knots."""
    return [math.exp(-knot * knot / 2) for knot in t]


def _rotated(u: Tensor, t: Knots) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield cos(t u) and sin(t u) [N, C] for each knot, in buffers that are reused."""
    angle = u * t[0]
    cos, sin = angle.cos(), angle.sin_()
    angle = u * (t[1] - t[0])
    cos_dt, sin_dt = angle.cos(), angle.sin_()
    spare = torch.empty_like(cos)
    for k in range(len(t)):
        if k:
            torch.mul(cos, cos_dt, out=spare).addcmul_(sin, sin_dt, value=-1)
            sin.mul_(cos_dt).addcmul_(cos, sin_dt)
            cos, spare = spare, cos
        yield cos, sin


def _sweep(u: Tensor, t: Knots, weights: Knots, *, out: Tensor) -> Tensor:
    """Return the statistic of u [N, C] summed over columns; write N/2 times its gradient to `out`."""
    errors = u.new_empty(len(t), 2, u.shape[1])
    phi = _normal(t)
    out.zero_()
    for k, (cos, sin) in enumerate(_rotated(u, t)):
        real, imaginary = errors[k]
        torch.mean(cos, 0, out=real)
        real.sub_(phi[k])
        torch.mean(sin, 0, out=imaginary)
        out.addcmul_(cos, imaginary, value=weights[k] * t[k])
        out.addcmul_(sin, real, value=-weights[k] * t[k])
    return errors.square_().sum((1, 2)) @ errors.new_tensor(weights)


def _add_up(u: Tensor, t: Knots, *, out: Tensor) -> None:
    """Write the sums over rows of cos(t u) and sin(t u), for u [N, C], to `out` [K, 2, C]."""
    for (real, imaginary), (cos, sin) in zip(out, _rotated(u, t), strict=True):
        torch.sum(cos, 0, out=real)
        torch.sum(sin, 0, out=imaginary)


def _descend(u: Tensor, t: Knots, weights: Knots, errors: Tensor, *, out: Tensor) -> None:
    """Write half the gradient at u [N, C], times the rows of all ranks, to `out`; errors [K, 2, C]."""
    out.zero_()
    for k, (cos, sin) in enumerate(_rotated(u, t)):
        real, imaginary = errors[k]
        out.addcmul_(cos, imaginary, value=weights[k] * t[k])
        out.addcmul_(sin, real, value=-weights[k] * t[k])
