"""Diagnostics beyond the loss: do predictions beat trivial ones, and have the latents collapsed?

Collapsed encoders have a perfect loss. So these diagnostics also measure the cosine and R^2 of predictions
against targets, the same for two trivial predictors (the mean of the targets; the context latent
itself), and the spread of the latents: effective rank (exponential of the entropy of the normalised
singular values of centred rows; Roy, Vetterli 2007) and standard deviation of each dim.
Legend: R rows, D latent width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lm.utils.kinds import Count, checked

DEAD_STD = 0.1
MIN_ROWS_FOR_ALARM = 8
"""With fewer rows, the effective rank means nothing."""


def effective_rank(rows: Tensor) -> Tensor:
    """[R, D] -> scalar between 1 and min(R - 1, D); 1 for identical rows."""
    centred = (rows - rows.mean(0)).double()
    if not centred.isfinite().all():  # the eigenvalue solver would raise an error
        return centred.new_tensor(float("nan"))
    # Both Gram matrices have the same nonzero eigenvalues; in float32, rounding would look like rank.
    gram = centred.T @ centred if len(rows) >= rows.shape[1] else centred @ centred.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-30)
    return torch.special.entr(share).sum().exp()


def spread(rows: Tensor) -> dict[str, Tensor]:
    """Return measures of how much rows [R, D] differ from each other."""
    std = rows.std(0, unbiased=False)
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(rows)  # [D, D]
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return {
        "effective_rank": effective_rank(rows),
        "std_min": std.min(),
        "std_median": std.median(),
        "std_dead": (std < DEAD_STD).float().mean(),
        "covariance_off_diagonal": off_diagonal.abs().mean(),
    }


def r_squared(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - squared error / squared error of the mean target; [R, D] twice -> scalar."""
    residual = (prediction - target).square().sum()
    return 1 - residual / (target - target.mean(0)).square().sum().clamp(min=1e-30)


def prediction_quality(
    prediction: Tensor, target: Tensor, context: Tensor | None
) -> dict[str, Tensor]:
    """Return cosine and R^2 of predictions against targets, [R, D] each, and of trivial predictors."""
    mean = target.mean(0).expand_as(target)
    found = {
        "cosine": F.cosine_similarity(prediction, target, dim=-1).mean(),
        "cosine_of_mean": F.cosine_similarity(mean, target, dim=-1).mean(),
        "r2": r_squared(prediction, target),
    }
    if context is not None and context.shape == target.shape:
        found["cosine_of_copy"] = F.cosine_similarity(context, target, dim=-1).mean()
        found["r2_of_copy"] = r_squared(context, target)
    return found


class Collapse(NamedTuple):
    """A measurement that stayed below a threshold."""

    step: int
    tensor: str
    figure: str
    value: float
    threshold: float
    cause: str

    def __str__(self) -> str:
        return (
            f"collapse at step {self.step}: {self.figure} of the {self.tensor} latents is "
            f"{self.value:.3g}, below {self.threshold:g}; {self.cause}"
        )


class MonitorSettings:
    """Settings of when to measure and what counts as a collapse.

    Args:
        every: optimizer steps between measurements. rows: maximum rows per measurement.
        per_layer: also measure the objective's share of the gradient for every block.
        min_rank: an effective rank below this counts as collapse.
        min_std: a median std of the dims below this counts as collapse.
        patience: consecutive measurements that must be below a threshold.

    Raises:
        UserError: `every`, `rows` or `patience` is below 1.
    """

    @checked
    def __init__(
        self,
        *,
        every: Count,
        rows: Count,
        per_layer: bool,
        min_rank: float,
        min_std: float,
        patience: Count,
    ) -> None:
        self.every, self.rows, self.per_layer = every, rows, per_layer
        self.min_rank, self.min_std, self.patience = min_rank, min_std, patience

    def sample(self, x: Tensor) -> Tensor:
        """[B, N, D] -> at most `rows` evenly spaced rows [R, D]."""
        rows = x.detach().flatten(0, -2)  # [B N, D]
        return rows[:: max(1, -(-len(rows) // self.rows))]


class CollapseAlarm:
    """Alarm that is raised once, when latents stay below a threshold.

    Args:
        diagnostics: thresholds and patience. cause: what in the composition allows a collapse.
        tensors: which of `context` and `target` to watch; predictions may have any spread.
    """

    def __init__(
        self,
        diagnostics: MonitorSettings,
        cause: str,
        tensors: tuple[str, ...] = ("context", "target"),
    ) -> None:
        self.settings, self.cause, self.tensors = diagnostics, cause, tensors
        self.low: dict[str, int] = {}
        """Consecutive measurements below the threshold, by figure."""
        self.raised: Collapse | None = None

    def read(self, step: int, figures: dict[str, float], rows: int) -> Collapse | None:
        """Process a measurement; return the collapse if it raises the alarm, else None."""
        if rows < MIN_ROWS_FOR_ALARM:
            return None
        for tensor in self.tensors:
            for figure, least in (
                ("effective_rank", self.settings.min_rank),
                ("std_median", self.settings.min_std),
            ):
                key = f"{tensor}_{figure}"
                below = figures[key] < least
                self.low[key] = self.low.get(key, 0) + 1 if below else 0
                if self.low[key] >= self.settings.patience and self.raised is None:
                    value = figures[key]
                    self.raised = Collapse(step, tensor, figure, value, least, self.cause)
                    return self.raised
        return None
