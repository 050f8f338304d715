"""Guards against collapse, on latents [B, N, D]: VICReg's terms, a hinge, a floor under the spectrum.

Each is a statistic over rows: of this process or, where the moment says `joint`, of all ranks. They
take it from `jepa_lm.objective.statistics`, which does both.
Legend: B batch, N latents of a row, R = B N rows (of all ranks if joint), D width.
Source: Bardes, Ponce, LeCun, "VICReg" (2022) for variance and covariance; submissions #1243 (std
hinge on biased std) and #1556 (floor under the spectrum of differences).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lm.objective.statistics import covariance, std, variance
from jepa_lm.objective.step_context import StepContext
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.errors import UserError

PLACES = ("prediction", "normed_prediction", "target", "context")


class Regularizer(nn.Module):
    """A loss on one tensor of an objective.

    Args:
        tensor: `prediction` before normalisation, `normed_prediction` after it, `target` (those that
            predictions are held against, with gradients where the target source has them), or
            `context` (all context latents after the projector).
        weight: within the auxiliary loss. schedule: a factor on it that follows the clock.
    """

    gamma: float | None = None
    """The standard deviation it asks for, where it asks for one."""
    per_step = False
    """Whether each of the N latents is a sample of its own, with the batch as its rows."""

    def __init__(self, *, tensor: str, weight: float, schedule: Schedule | None = None) -> None:
        super().__init__()
        if tensor not in PLACES:
            raise UserError(f"{type(self).__name__}: tensor={tensor}, one of {', '.join(PLACES)}")
        if weight < 0:
            raise UserError(f"{type(self).__name__}: weight={weight}, must not be negative")
        self.tensor, self.weight, self.schedule = tensor, weight, schedule

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        """This rank's [B, N, D] float32 -> scalar; of all ranks' rows where `step_context.joint`."""
        raise NotImplementedError


class Variance(Regularizer):
    """mean_D max(0, gamma - sqrt(var + eps)), variance over rows with R - 1 in the denominator."""

    def __init__(
        self,
        *,
        tensor: str,
        weight: float,
        gamma: float,
        eps: float,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(tensor=tensor, weight=weight, schedule=schedule)
        self.gamma, self.eps = gamma, eps

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        spread = variance(x.flatten(0, -2), joint=step_context.joint, unbiased=True)
        assert self.gamma is not None
        return (self.gamma - torch.sqrt(spread + self.eps)).clamp(min=0).mean()


class StdHinge(Regularizer):
    """mean_D max(0, gamma - std), std over rows with R in the denominator, finite gradient at 0."""

    def __init__(
        self, *, tensor: str, weight: float, gamma: float, schedule: Schedule | None = None
    ) -> None:
        super().__init__(tensor=tensor, weight=weight, schedule=schedule)
        self.gamma = gamma

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        assert self.gamma is not None
        spread = std(x.flatten(0, -2), joint=step_context.joint, unbiased=False)
        return (self.gamma - spread).clamp(min=0).mean()


class Covariance(Regularizer):
    """Sum of squared covariances between different dims, over D; R - 1 in the denominator."""

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        found = covariance(x.flatten(0, -2), joint=step_context.joint)
        off_diagonal = found.square().sum() - found.diagonal().square().sum()
        return off_diagonal / x.shape[-1]


class SpectralFloor(Regularizer):
    """mean_i max(0, floor - lambda_i) over the eigenvalues of the covariance.

    Args:
        floor: lambda_i is held against it, after division by the mean eigenvalue when `relative`.
        differences: take the covariance of x_{n+1} - x_n instead of x_n.
    """

    def __init__(
        self,
        *,
        tensor: str,
        weight: float,
        floor: float,
        relative: bool,
        differences: bool,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(tensor=tensor, weight=weight, schedule=schedule)
        self.floor, self.relative, self.differences = floor, relative, differences

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        rows = (x.diff(dim=1) if self.differences else x).flatten(0, -2)
        found = covariance(rows, joint=step_context.joint)
        # The solver raises on NaN; the loss shall be NaN instead, for the run to name it.
        eigenvalues = torch.linalg.eigvalsh(found.nan_to_num()) + 0.0 * found.sum()
        if self.relative:
            eigenvalues = eigenvalues / eigenvalues.mean().clamp(min=1e-12)
        return (self.floor - eigenvalues).clamp(min=0).mean()
