"""Which context latent predicts which target latent.

Each alignment calls the predictor and returns pairs of equal shape, with weights that add up to 1.
Legend: B batch, N latents, M masked positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_lm.objective.predictors import Predictor
from jepa_lm.utils.errors import UserError


class Pair(NamedTuple):
    """Predictions and what they are held against, [B, N', D] each."""

    prediction: Tensor
    target: Tensor
    context: Tensor
    """The context latents that the predictions were made from, [B, N', D of the context]."""
    weight: float
    """Share of this pair in the prediction loss."""


class Alignment(nn.Module):
    """Pairs predictions with targets."""

    needs_mask = False

    def check(self, latents: int) -> None:
        """Raise UserError when rows of this many latents are too short."""

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        """context [B, N, D], target [B, N, E], masked [M] positions or None -> pairs."""
        raise NotImplementedError


def apply(predictor: Predictor | None, x: Tensor, offset: int = 0) -> Tensor:
    """The prediction; without a predictor the latents themselves."""
    return x if predictor is None else predictor(x, offset)


class SamePosition(Alignment):
    """Latent n predicts target n."""

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        return [Pair(apply(predictor, context), target, context, 1.0)]


class MaskedPositions(Alignment):
    """At the masked positions of the context view, latent n predicts target n."""

    needs_mask = True

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        assert masked is not None
        seen = context.index_select(1, masked)
        return [Pair(apply(predictor, seen), target.index_select(1, masked), seen, 1.0)]


class Offsets(Alignment):
    """Latent n predicts target n + k, for each k of a list.

    Args:
        offsets: k, at least 1 each. weights: of each, None for equal ones; only their ratios count.
        stride: predict from every stride-th latent only.
    """

    def __init__(
        self, *, offsets: Sequence[int], weights: Sequence[float] | None = None, stride: int = 1
    ) -> None:
        super().__init__()
        if not offsets or min(offsets) < 1 or stride < 1:
            raise UserError(
                f"jepa.alignment.offsets={list(offsets)} stride={stride}: at least one, all positive"
            )
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
        dim: of the start vector. std: it starts at N(0, std).
    """

    def __init__(self, *, dim: int, std: float) -> None:
        super().__init__()
        self.start = nn.Parameter(std * torch.randn(dim))

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, masked: Tensor | None
    ) -> list[Pair]:
        start = self.start.to(context.dtype).expand(len(context), 1, -1)
        previous = torch.cat((start, context[:, :-1]), dim=1)
        return [Pair(apply(predictor, previous), target, previous, 1.0)]


class Rollout(Alignment):
    """p_0 = latent n, p_k = predictor(p_{k-1}) is held against target n + k, for k = 1..steps.

    Args:
        steps: K. weights: of each step, None for equal ones; only their ratios count.
    """

    def __init__(self, *, steps: int, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if steps < 1:
            raise UserError(f"jepa.alignment.steps={steps}: at least 1")
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
            # What runs past the end has no target; causal predictors give the same without it.
            rolled = apply(predictor, rolled[:, :-1])
            pairs.append(Pair(rolled, target[:, k:], context[:, :-k], weight))
        return pairs


def shares(key: str, weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights scaled to add up to 1."""
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
        raise UserError(f"{key}={list(weights)}: needs {count} weights, none negative, not all 0")
    return [w / sum(weights) for w in weights]
