"""Alignments: which context latent predicts which target latent.

Each alignment calls the predictor and returns pairs of equal shape, with weights that sum to 1.
Legend: B batch, N latents, M masked positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_lm.objective.predictors import Predictor
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, NotNegative, checked


class Pair(NamedTuple):
    """Predictions and their targets, [B, N', D] each."""

    prediction: Tensor
    target: Tensor
    context: Tensor
    """Context latents that the predictions were made from, [B, N', D of the context]."""
    weight: float
    """Share of this pair in the prediction loss."""


class Alignment(nn.Module):
    """Pairing of predictions with targets."""

    needs_mask = False

    def check(self, latents: int) -> None:
        """Raise UserError if rows with this many latents are too short."""

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        """context [B, N, D], target [B, N, E], masked [M] positions or None -> pairs."""
        raise NotImplementedError


def apply(predictor: Predictor | None, x: Tensor, offset: int = 0) -> Tensor:
    """Return the prediction, or the latents themselves if there is no predictor."""
    return x if predictor is None else predictor(x, offset)


class SamePosition(Alignment):
    """Latent n predicts target n."""

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        return [Pair(apply(predictor, context), target, context, 1.0)]


class MaskedPositions(Alignment):
    """Latent n predicts target n at the masked positions of the context view."""

    needs_mask = True

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        assert masked is not None
        seen = context.index_select(1, masked)  # [B, M, D]
        return [Pair(apply(predictor, seen), target.index_select(1, masked), seen, 1.0)]


class Offsets(Alignment):
    """Latent n predicts target n + k, for each k of a list.

    Args:
        offsets: k, each at least 1. weights: one per offset, or None for equal ones; only ratios matter.
        stride: predict only from every stride-th latent.
    """

    @checked
    def __init__(
        self,
        *,
        offsets: Sequence[Count],
        weights: Sequence[NotNegative] | None = None,
        stride: Count = 1,
    ) -> None:
        super().__init__()
        if not offsets:
            raise UserError("jepa.alignment.offsets=[]: needs at least one offset")
        self.offsets, self.stride = list(offsets), stride
        self.weights = shares("jepa.alignment.weights", weights, len(self.offsets))

    def check(self, latents: int) -> None:
        if latents <= max(self.offsets):
            raise UserError(
                f"jepa.alignment.offsets={self.offsets}: a sequence has only {latents} latents"
            )

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        pairs = []
        for i, (k, weight) in enumerate(zip(self.offsets, self.weights, strict=True)):
            source = context[:, : -k : self.stride]
            ahead = target[:, k :: self.stride]
            pairs.append(Pair(apply(predictor, source, i), ahead, source, weight))
        return pairs


class NextFromStart(Alignment):
    """Latent n - 1 predicts target n; a learned start vector predicts target 0 (#832).

    Args:
        dim: width of the start vector. std: the start vector is N(0, std).
    """

    @checked
    def __init__(self, *, dim: Count, std: NotNegative) -> None:
        super().__init__()
        self.start = nn.Parameter(std * torch.randn(dim))

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        start = self.start.to(context.dtype).expand(len(context), 1, -1)  # [B, 1, D]
        previous = torch.cat((start, context[:, :-1]), dim=1)  # [B, N, D]
        return [Pair(apply(predictor, previous), target, previous, 1.0)]


class Rollout(Alignment):
    """Rollout: p_0 = latent n, and p_k = predictor(p_{k-1}) predicts target n + k, for k = 1..steps.

    Args:
        steps: number of steps K. weights: one per step, or None for equal ones; only ratios matter.
    """

    @checked
    def __init__(self, *, steps: Count, weights: Sequence[NotNegative] | None = None) -> None:
        super().__init__()
        self.steps = steps
        self.weights = shares("jepa.alignment.weights", weights, steps)

    def check(self, latents: int) -> None:
        if latents <= self.steps:
            raise UserError(
                f"jepa.alignment.steps={self.steps}: a sequence has only {latents} latents"
            )

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        pairs = []
        rolled = context
        for k, weight in enumerate(self.weights, start=1):
            # The last latent has no target; a causal predictor gives the same without it.
            rolled = apply(predictor, rolled[:, :-1])
            pairs.append(Pair(rolled, target[:, k:], context[:, :-k], weight))
        return pairs


def shares(key: str, weights: Sequence[float] | None, count: int) -> list[float]:
    """Return weights scaled to sum to 1; None means equal weights.

    Raises:
        UserError: the number of weights is not `count`, or all are 0.
    """
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count or sum(weights) <= 0:
        raise UserError(f"{key}={list(weights)}: needs {count} weights, not all 0")
    return [w / sum(weights) for w in weights]
