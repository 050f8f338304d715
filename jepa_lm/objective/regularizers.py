"""Regularizers against collapse, on latents [B, N, D]: VICReg's terms, a std hinge, a spectral floor.

Each is a statistic over the rows of this process, or of all ranks if the step context says `joint`;
`jepa_lm.objective.statistics` computes both.
Legend: B batch, N latents of a row, R = B N rows (of all ranks if joint), D width.
Source: Bardes, Ponce, LeCun, "VICReg" (2022) for variance and covariance; submissions #1243 (hinge
on the biased std) and #1556 (floor under the spectrum of differences).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from jepa_lm.objective.statistics import covariance, std, variance
from jepa_lm.objective.step_context import Draws, StepContext
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.kinds import NotNegative, checked

Place = Literal["prediction", "normed_prediction", "target", "context", "both"]


class Regularizer(nn.Module):
    """A loss on one tensor of an objective.

    Args:
        tensor: `prediction` before normalisation, `normed_prediction` after it, `target` (the targets of
            the predictions, with gradients if the target source has them), `context` (all context
            latents after the projector), or `both` (those and the targets, side by side in a row).
        weight: weight within the auxiliary loss. schedule: scheduled factor on it, or None.

    Raises:
        UserError: an unknown tensor or a negative weight.
    """

    gamma: float | None = None
    """Standard deviation that the regularizer asks for, or None."""
    per_step = False
    """True if each of the N latents is a separate sample, with the batch as its rows."""

    @checked
    def __init__(
        self, *, tensor: Place, weight: NotNegative, schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        self.tensor, self.weight, self.schedule = tensor, weight, schedule

    def draw(self, latents: int, step_context: StepContext, device: torch.device) -> Draws:
        """Draw for rows of N = `latents` latents what `forward` finds in `step_context.drawn`."""
        return ()

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        """[B, N, D] float32 of this rank -> scalar, over the rows of all ranks if `step_context.joint`."""
        raise NotImplementedError


class Variance(Regularizer):
    """VICReg's variance: mean_D max(0, `gamma` - sqrt(var + `eps`)), variance over rows / (R - 1)."""

    @checked
    def __init__(
        self,
        *,
        tensor: Place,
        weight: NotNegative,
        gamma: float,
        eps: float,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(tensor=tensor, weight=weight, schedule=schedule)
        self.gamma, self.eps = gamma, eps

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        spread = variance(x.flatten(0, -2), joint=step_context.joint, unbiased=True)  # [D]
        assert self.gamma is not None
        return (self.gamma - torch.sqrt(spread + self.eps)).clamp(min=0).mean()


class StdHinge(Regularizer):
    """Std hinge mean_D max(0, `gamma` - std), std over rows with denominator R, finite gradient at 0."""

    @checked
    def __init__(
        self, *, tensor: Place, weight: NotNegative, gamma: float, schedule: Schedule | None = None
    ) -> None:
        super().__init__(tensor=tensor, weight=weight, schedule=schedule)
        self.gamma = gamma

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        assert self.gamma is not None
        spread = std(x.flatten(0, -2), joint=step_context.joint, unbiased=False)  # [D]
        return (self.gamma - spread).clamp(min=0).mean()


class Covariance(Regularizer):
    """VICReg's covariance: sum of squared covariances of different dims / D, with denominator R - 1."""

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        found = covariance(x.flatten(0, -2), joint=step_context.joint)  # [D, D]
        off_diagonal = found.square().sum() - found.diagonal().square().sum()
        return off_diagonal / x.shape[-1]


class SpectralFloor(Regularizer):
    """Spectral floor: mean_i max(0, floor - lambda_i) over the eigenvalues of the covariance.

    Args:
        floor: lower bound for lambda_i. relative: divide lambda_i by the mean eigenvalue first.
        differences: use the covariance of x_{n+1} - x_n instead of x_n.
    """

    @checked
    def __init__(
        self,
        *,
        tensor: Place,
        weight: NotNegative,
        floor: float,
        relative: bool,
        differences: bool,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(tensor=tensor, weight=weight, schedule=schedule)
        self.floor, self.relative, self.differences = floor, relative, differences

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        rows = (x.diff(dim=1) if self.differences else x).flatten(0, -2)  # [R, D]
        found = covariance(rows, joint=step_context.joint)
        # The solver raises on NaN; make the loss NaN instead, so that the run reports it.
        eigenvalues = torch.linalg.eigvalsh(found.nan_to_num()) + 0.0 * found.sum()
        if self.relative:
            eigenvalues = eigenvalues / eigenvalues.mean().clamp(min=1e-12)
        return (self.floor - eigenvalues).clamp(min=0).mean()
