"""Statistics over the first dimension of rows [R, ...], of this process or of all ranks.

`joint` treats the rows of all ranks as one sample; their number may differ between ranks. Sums of squares
are taken around the joint mean (two passes), because the difference of two large sums loses all precision
when the mean is large. They do not depend on the mean to first order (deviations from it sum to zero), so
no gradient goes through the mean and none has to be exchanged.
Legend: R rows of this rank, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lm.objective.ranks import sum_over_ranks


def joint_mean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[R, ...] -> mean [...] over the rows of all ranks and their number (scalar), in one exchange."""
    sums = torch.cat((rows.sum(0).flatten(), rows.new_full((1,), len(rows))))  # sums, row count
    totals = sum_over_ranks(sums)
    count = totals[-1].detach()
    return (totals[:-1] / count).view(rows.shape[1:]), count


def variance(rows: Tensor, *, joint: bool, unbiased: bool) -> Tensor:
    """[R, ...] -> [...]; the denominator is the number of rows, less one if `unbiased`."""
    if not joint:
        return rows.var(0, unbiased=unbiased)
    mean, count = joint_mean(rows.detach())
    squares = sum_over_ranks((rows - mean).square().sum(0), replicated=True)
    return squares / (count - 1 if unbiased else count)


def std(rows: Tensor, *, joint: bool, unbiased: bool) -> Tensor:
    """Return the square root of `variance`, with gradient 0 where the rows do not differ."""
    if not joint:
        return rows.std(0, unbiased=unbiased)  # not sqrt(var), whose gradient at 0 is NaN
    return _root(variance(rows, joint=True, unbiased=unbiased))


def covariance(rows: Tensor, *, joint: bool) -> Tensor:
    """[R, D] -> [D, D]; the denominator is the number of rows less one."""
    if not joint:
        centred = rows - rows.mean(0)
        return centred.T @ centred / (len(rows) - 1)
    mean, count = joint_mean(rows.detach())
    centred = rows - mean
    return sum_over_ranks(centred.T @ centred, replicated=True) / (count - 1)


def standardised(rows: Tensor, *, joint: bool, min_std: float) -> Tensor:
    """Scale rows [R, ...] to mean 0 and std 1 (unbiased, at least `min_std`), with gradients through both."""
    if not joint:
        return (rows - rows.mean(0)) / rows.std(0).clamp(min=min_std)
    # Not `std` from above: mean and std meet this rank's own rows, so their gradients differ by rank.
    mean, count = joint_mean(rows)
    centred = rows - mean
    squares = sum_over_ranks(centred.square().sum(0))
    return centred / _root(squares / (count - 1)).clamp(min=min_std)


def _root(x: Tensor) -> Tensor:
    """Return sqrt(x) with gradient 0 at 0, like `Tensor.std`; NaN stays NaN."""
    flat = x == 0
    return x.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)
