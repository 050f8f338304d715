"""Statistics of rows [R, ...] over their first dimension, of this process or of all ranks' rows.

`joint` takes the rows of all ranks as one sample; their number may differ between ranks. Sums of squares
are taken around the joint mean (two passes), because the difference of two large sums has no digits
left when the mean is large. Around the mean they do not depend on it to first order (the sum of what is
left is zero), so no gradient goes through the mean, and none has to be exchanged.
Legend: R rows of this rank, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lm.objective.ranks import sum_over_ranks


def _joint_mean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[R, ...] -> the mean [...] of all ranks' rows and their number (scalar), in one exchange."""
    sums = torch.cat((rows.sum(0).flatten(), rows.new_full((1,), len(rows))))
    totals = sum_over_ranks(sums)
    count = totals[-1].detach()
    return (totals[:-1] / count).view(rows.shape[1:]), count


def variance(rows: Tensor, *, joint: bool, unbiased: bool) -> Tensor:
    """[R, ...] -> [...]; the number of rows, less one if `unbiased`, is in the denominator."""
    if not joint:
        return rows.var(0, unbiased=unbiased)
    mean, count = _joint_mean(rows.detach())
    squares = sum_over_ranks((rows - mean).square().sum(0), replicated=True)
    return squares / (count - 1 if unbiased else count)


def std(rows: Tensor, *, joint: bool, unbiased: bool) -> Tensor:
    """The root of `variance`, with gradient 0 where the rows do not differ."""
    if not joint:
        return rows.std(0, unbiased=unbiased)  # not sqrt(var): that has NaN at 0
    return _root(variance(rows, joint=True, unbiased=unbiased))


def covariance(rows: Tensor, *, joint: bool) -> Tensor:
    """[R, D] -> [D, D], the number of rows less one in the denominator."""
    if not joint:
        centred = rows - rows.mean(0)
        return centred.T @ centred / (len(rows) - 1)
    mean, count = _joint_mean(rows.detach())
    centred = rows - mean
    return sum_over_ranks(centred.T @ centred, replicated=True) / (count - 1)


def standardised(rows: Tensor, *, joint: bool, min_std: float) -> Tensor:
    """[R, ...] with mean 0 and std 1 (unbiased, at least `min_std`), gradients through both."""
    if not joint:
        return (rows - rows.mean(0)) / rows.std(0).clamp(min=min_std)
    # Not `std` from above: here mean and std meet a rank's own rows, so gradients at them are its own.
    mean, count = _joint_mean(rows)
    centred = rows - mean
    squares = sum_over_ranks(centred.square().sum(0))
    return centred / _root(squares / (count - 1)).clamp(min=min_std)


def _root(x: Tensor) -> Tensor:
    """sqrt(x) with gradient 0 at 0, as `Tensor.std` has it; NaN stays NaN."""
    flat = x == 0
    return x.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)
