"""Distances of predictions from targets: [B, N, D] twice -> scalar, with an explicit reduction.

A distance that compares statistics of rows takes them from `jepa_lm.objective.statistics` with
`joint=comparison.step_context.joint`, and is then right on several ranks, too. These compare row by row, but
for `InfoNCE`, which takes its candidates from all ranks if `joint`.

`mean` averages over all elements, so orthogonal unit vectors are only 2/D apart: compare with the
cosine. `sum` sums over the D dimensions and averages over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model import LanguageModel
from jepa_lm.objective.ranks import rows_of_all_ranks, sum_over_ranks
from jepa_lm.objective.step_context import StepContext
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import NotNegative, Positive, checked

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Comparison:
    """What a distance may read beside prediction and target.

    Args:
        model: the model that is trained. target_model: the one that the targets come from.
        context: latents that the predictions were made from [B, N, D].
        step_context: place in the run.
        rows, answers, tokens, level: see `jepa_lm.objective.alignment.Pair`.
    """

    model: LanguageModel
    target_model: LanguageModel
    context: Tensor
    step_context: StepContext
    rows: Tensor | None = None
    answers: Tensor | None = None
    tokens: Tensor | None = None
    level: str | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of values [B, N] over the rows that count, of all ranks."""
        return weighted_mean(values, self.rows, self.step_context)


def weighted_mean(values: Tensor, weights: Tensor | None, step_context: StepContext) -> Tensor:
    """Return the weighted mean over the batch of all ranks; 0 if nothing counts.

    A rank's share is scaled so that the mean over ranks, which DDP takes, is the mean over all.

    Args:
        values, weights: of equal shape; no weights mean equal ones.
    """
    if weights is None:
        return values.mean()
    return (values * weights).sum() / total_weight(weights, step_context)


def total_weight(weights: Tensor, step_context: StepContext) -> Tensor:
    """Return the sum of weights over all ranks, divided by their number; never 0."""
    total = weights.sum().detach()
    if step_context.world_size > 1:
        total = sum_over_ranks(total) / step_context.world_size
    return total.clamp(min=torch.finfo(total.dtype).tiny)


class _Elementwise(nn.Module):
    """Over all elements: `reduction` mean or sum, see the module."""

    fragile_at_zero = False

    @checked
    def __init__(self, *, reduction: Reduction) -> None:
        super().__init__()
        self.reduction = reduction

    def _reduce(self, elements: Tensor, comparison: Comparison) -> Tensor:
        if comparison.rows is None and self.reduction == "mean":
            return elements.mean()
        rows = elements.mean(-1) if self.reduction == "mean" else elements.sum(-1)
        return comparison.mean(rows)


class MSE(_Elementwise):
    """Squared error (p - t)^2."""

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D] twice -> scalar."""
        return self._reduce((prediction - target).square(), comparison)


class SmoothL1(_Elementwise):
    """Smooth L1: d^2 / (2 beta) where d = |p - t| < beta, else d - beta / 2."""

    @checked
    def __init__(self, *, reduction: Reduction, beta: NotNegative = 1.0) -> None:
        super().__init__(reduction=reduction)
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D] twice -> scalar."""
        d = F.smooth_l1_loss(prediction, target, beta=self.beta, reduction="none")
        return self._reduce(d, comparison)


class Cosine(nn.Module):
    """Cosine distance `scale` (1 - cos), mean over rows; 2 is the squared distance of unit vectors."""

    fragile_at_zero = True

    def __init__(self, *, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D] twice -> scalar."""
        apart = 1.0 - F.cosine_similarity(prediction, target, dim=-1)
        return self.scale * comparison.mean(apart)


class Euclidean(nn.Module):
    """Euclidean distance |p - t|, mean over rows."""

    fragile_at_zero = False

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D] twice -> scalar."""
        return comparison.mean(torch.linalg.vector_norm(prediction - target, dim=-1))


class InfoNCE(nn.Module):
    """Cross entropy of finding each prediction's own target among those of the micro-batch, by cosine.

    The candidates are those of a rank, or of all ranks with `jepa.global_statistics`, without the targets of
    pairs that do not count.

    Args:
        temperature: what cosines are divided by. Source: 1807.03748, as in LLM-JEPA (2509.14252).
    """

    fragile_at_zero = True
    compares_rows = True

    @checked
    def __init__(self, *, temperature: Positive) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D] twice -> scalar."""
        p, t = (F.normalize(x.flatten(0, 1), dim=-1) for x in (prediction, target))  # [R, D]
        own, place, rows = (
            torch.arange(len(p), device=p.device),
            comparison.step_context,
            comparison.rows,
        )
        if place.joint:
            t, own = rows_of_all_ranks(t), own + place.rank * len(p)  # [W R, D]
        z = p @ t.T / self.temperature
        if rows is not None:
            counts = rows_of_all_ranks(rows.flatten()) if place.joint else rows.flatten()
            others = torch.arange(len(t), device=p.device) != own[:, None]
            z = z.masked_fill(others & (counts == 0), -torch.inf)
        nats = F.cross_entropy(z, own, reduction="none")
        return comparison.mean(nats.view(prediction.shape[:2]))


class SoftCrossEntropy(nn.Module):
    """Cross entropy of a law from logits: -sum target log_softmax(prediction), mean over rows.

    The targets are probabilities; the smallest value is their entropy, not 0.
    """

    fragile_at_zero = False

    @staticmethod
    def as_target(prediction: Tensor) -> Tensor:
        """Return the law that logits [..., K] stand for."""
        return prediction.softmax(-1)

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """Logits and probabilities [B, N, K] -> scalar."""
        return comparison.mean(-(target * prediction.log_softmax(-1)).sum(-1))


class Sum(nn.Module):
    """Weighted sum of distances; each is logged under its name.

    Args:
        distances: by name. weights: of each, by the same names.
        levels: by name of a distance, the level whose pairs alone it compares; others compare all.

    Raises:
        UserError: the names differ, or there is none.
    """

    @checked
    def __init__(
        self,
        *,
        distances: Mapping[str, nn.Module],
        weights: Mapping[str, NotNegative],
        levels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.levels = dict(levels or {})
        if not distances or distances.keys() != weights.keys():
            raise UserError(
                f"jepa.distance.weights={dict(weights)}: one weight for each of "
                f"jepa.distance.distances, which are {', '.join(distances) or 'none'}"
            )
        if unknown := self.levels.keys() - distances.keys():
            raise UserError(
                f"jepa.distance.levels={self.levels}: {', '.join(sorted(unknown))} is none of "
                f"jepa.distance.distances, which are {', '.join(distances)}"
            )
        self.distances, self.weights = nn.ModuleDict(distances), dict(weights)
        self.fragile_at_zero = any(
            getattr(part, "fragile_at_zero", False) for part in distances.values()
        )
        self.needs_equal_widths = all(
            getattr(part, "needs_equal_widths", True) for part in distances.values()
        )

    def parts(
        self, prediction: Tensor, target: Tensor, comparison: Comparison
    ) -> dict[str, Tensor]:
        """Return each distance before its weight, by name, without those of weight 0 or of other levels."""
        return {
            name: distance(prediction, target, comparison)
            for name, distance in self.distances.items()
            if self.weights[name] and self.levels.get(name, comparison.level) == comparison.level
        }

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D] twice -> scalar."""
        return self.of(self.parts(prediction, target, comparison))

    def of(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of what `parts` returned."""
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
