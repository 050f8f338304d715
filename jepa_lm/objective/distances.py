"""Distances of predictions from targets: [..., D] twice -> scalar, with an explicit reduction.

A distance that compares statistics of rows takes them from `jepa_lm.objective.statistics` with
`joint=step_context.joint`, and is then right on several ranks, too; these compare row by row.

`mean` averages over all elements, so orthogonal unit vectors are only 2/D apart: compare with the
cosine. `sum` sums over the D dimensions and averages over rows.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.objective.step_context import StepContext
from jepa_lm.utils.kinds import NotNegative, checked

Reduction = Literal["mean", "sum"]


def _reduce(elements: Tensor, reduction: str) -> Tensor:
    return elements.mean() if reduction == "mean" else elements.sum(-1).mean()


class _Elementwise(nn.Module):
    """Over all elements: `reduction` mean or sum, see the module."""

    fragile_at_zero = False

    @checked
    def __init__(self, *, reduction: Reduction) -> None:
        super().__init__()
        self.reduction = reduction


class MSE(_Elementwise):
    """Squared error (p - t)^2."""

    def forward(self, prediction: Tensor, target: Tensor, step_context: StepContext) -> Tensor:
        """[..., D] twice -> scalar."""
        return _reduce((prediction - target).square(), self.reduction)


class SmoothL1(_Elementwise):
    """Smooth L1: d^2 / (2 beta) where d = |p - t| < beta, else d - beta / 2."""

    @checked
    def __init__(self, *, reduction: Reduction, beta: NotNegative = 1.0) -> None:
        super().__init__(reduction=reduction)
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor, step_context: StepContext) -> Tensor:
        """[..., D] twice -> scalar."""
        d = F.smooth_l1_loss(prediction, target, beta=self.beta, reduction="none")
        return _reduce(d, self.reduction)


class Cosine(nn.Module):
    """Cosine distance `scale` (1 - cos), mean over rows; 2 is the squared distance of unit vectors."""

    fragile_at_zero = True

    def __init__(self, *, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, prediction: Tensor, target: Tensor, step_context: StepContext) -> Tensor:
        """[..., D] twice -> scalar."""
        return self.scale * (1.0 - F.cosine_similarity(prediction, target, dim=-1)).mean()
