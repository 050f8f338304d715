"""Diagnostics beyond the loss: do predictions beat trivial ones, and how far apart are the latents?

Collapsed encoders have a perfect loss. So these diagnostics also measure the cosine and R^2 of predictions
against targets, the same for two trivial predictors (the mean of the targets; the context latent
itself), and the spread of the latents: effective rank (exponential of the entropy of the normalised
singular values of centred rows; Roy, Vetterli 2007) and standard deviation of each dim. What their values say
of a collapse is decided in `jepa_lm.objective.collapse`.
Legend: R rows, D latent width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lm.utils.kinds import Count, NotNegative, Share, checked

DEAD_STD = 0.1
ALIVE_STD = 0.05
"""Share of the std of all dims, as a root mean square, above which a dim counts as alive, at any scale."""


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
    """Return measures of how much rows [R, D] differ from each other.

    `rank_share`, `relative_spread` and `alive_share` are between 0 and 1 and do not depend on the scale: the
    effective rank as a share of the possible one; the root mean square of centred rows as a share of that of
    the rows, which is near 0 if one vector is in all of them; the share of dims whose std is not far below
    that of the others.
    """
    std = rows.std(0, unbiased=False)
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(rows)  # [D, D]
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    rank, apart = effective_rank(rows), std.square().mean().sqrt()
    return {
        "effective_rank": rank,
        "rank_share": rank / max(1, min(len(rows) - 1, rows.shape[1])),
        "relative_spread": apart / rows.square().mean().sqrt().clamp(min=1e-30),
        "alive_share": (std > ALIVE_STD * apart).float().mean(),
        "std_rms": apart,
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


class MonitorSettings:
    """Settings of when to measure and what is reported as a collapse.

    Args:
        every: optimizer steps between measurements. rows: maximum rows per measurement.
        per_layer: also measure the objective's share of the gradient for every block.
        min_rank: an effective rank below this is a sign of collapse, whatever the width.
        min_std: a spread below this share of the latents' root mean square is one.
        patience: measurements in a row that must show a sign before the alarm; at most half of those that
            the budget holds.

    Raises:
        UserError: a value is out of range.
    """

    @checked
    def __init__(
        self,
        *,
        every: Count,
        rows: Count,
        per_layer: bool,
        min_rank: NotNegative,
        min_std: Share,
        patience: Count,
    ) -> None:
        self.every, self.rows, self.per_layer = every, rows, per_layer
        self.min_rank, self.min_std, self.patience = min_rank, min_std, patience

    def sample(self, x: Tensor) -> Tensor:
        """[B, N, D] -> at most `rows` evenly spaced rows [R, D]."""
        rows = x.detach().flatten(0, -2)  # [B N, D]
        return rows[:: max(1, -(-len(rows) // self.rows))]
