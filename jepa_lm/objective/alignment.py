"""Alignments: which context latent predicts which target latent.

Each alignment calls the predictor and returns pairs of equal shape, with weights that sum to 1.
Legend: B batch, N latents, M masked positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.objective.padding import repeated
from jepa_lm.objective.predictors import Predictor
from jepa_lm.objective.step_context import Draws, StepContext
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
    rows: Tensor | None = None
    """Weight of each prediction [B, N'], 0 for those that do not count; None if all do."""
    answers: Tensor | None = None
    """Whether the token that a target latent predicts counts [B, N'], bool; None if all do."""
    tokens: Tensor | None = None
    """That token itself [B, N']; None where a latent belongs to no single position."""
    level: str | None = None
    """Name of the alignment that made it, if there are several."""


class Given(NamedTuple):
    """What an alignment may read of a micro-batch, beside the latents."""

    masked: Tensor | None = None
    """Masked positions of the context view [M], or None."""
    tokens: Tensor | None = None
    """Rows of the token table for the inputs [B, T, D], if the alignment `needs_tokens`."""
    starts: Tensor | None = None
    """Where a document starts [B, T], bool, or None if the tokenizer marks no start."""
    answers: Tensor | None = None
    """Which targets of the batch count [B, T], bool, or None if all do."""
    of_text: Tensor | None = None
    """Which latents are not of padding alone [B, N], bool, or None if all are of text."""
    following: Tensor | None = None
    """Token after each position of the targets' text [B, T]."""
    step_context: StepContext | None = None
    """Place in the run, with what the alignment has drawn."""


class Alignment(nn.Module):
    """Pairing of predictions with targets."""

    needs_mask = False
    """True if it needs a view that masks."""
    needs_tokens = False
    """True if its predictor is given the tokens between context and target (`takes_tokens`)."""

    def check(self, latents: int) -> None:
        """Raise UserError if rows with this many latents are too short."""

    def check_predictor(self, predictor: Predictor | None) -> None:
        """Raise UserError if the predictor needs tokens that it is not given, or the reverse."""
        check_tokens(self, predictor)

    def draw(
        self, rows: int, latents: int, step_context: StepContext, device: torch.device
    ) -> Draws:
        """Draw for rows of N = `latents` latents what `forward` finds in `given.step_context.drawn`."""
        return ()

    def given(
        self,
        model: LanguageModel,
        batch: Batch,
        masked: Tensor | None,
        of_text: Tensor | None,
        document_start: int | None,
        reach: int | None,
        step_context: StepContext,
    ) -> Given:
        """Return what `forward` may read beside the latents of a batch."""
        inputs, answers, tokens = batch["inputs"], batch.get("answers"), None
        if self.needs_tokens:
            trained = reach is None  # the table lies below every block
            with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
                tokens = repeated(model.embedding(inputs), batch.get("whole"))
        starts = None if document_start is None else inputs == document_start
        return Given(masked, tokens, starts, answers, of_text, batch["targets"], step_context)

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        """context [B, N, D], target [B, N, E] -> pairs."""
        raise NotImplementedError


def check_tokens(alignment: Alignment, predictor: Predictor | None) -> None:
    """Raise UserError if only one of the two knows of tokens."""
    if alignment.needs_tokens != bool(predictor is not None and predictor.takes_tokens):
        raise UserError(
            f"jepa.predictor: {type(alignment).__name__} "
            + (
                "gives it tokens, so it needs Transition"
                if alignment.needs_tokens
                else "gives it no tokens, which Transition needs; set jepa.alignment to TokenRollout"
            )
        )


def told(
    given: Given, target: Tensor, places: slice | Tensor = slice(None)
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return `rows`, `answers` and `tokens` of a pair with the targets at these places of N.

    Pooled latents belong to no single token, and get None: all that are of text count.
    """
    rows, answers, tokens = (
        None if x is None or x.shape[1] != target.shape[1] else x[:, places]
        for x in (given.of_text, given.answers, given.following)
    )
    return None if rows is None else rows.float(), answers, tokens


def apply(predictor: Predictor | None, x: Tensor, offset: int = 0) -> Tensor:
    """Return the prediction, or the latents themselves if there is no predictor."""
    return x if predictor is None else predictor(x, offset)


class SamePosition(Alignment):
    """Latent n predicts target n."""

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        return [Pair(apply(predictor, context), target, context, 1.0, *told(given, target))]


class MaskedPositions(Alignment):
    """Latent n predicts target n at the masked positions of the context view."""

    needs_mask = True

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        assert given.masked is not None
        seen, hidden = (x.index_select(1, given.masked) for x in (context, target))  # [B, M, D]
        return [Pair(apply(predictor, seen), hidden, seen, 1.0, *told(given, target, given.masked))]


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
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        pairs = []
        for i, (k, weight) in enumerate(zip(self.offsets, self.weights, strict=True)):
            source = context[:, : -k : self.stride]
            ahead = target[:, k :: self.stride]
            known = told(given, target, slice(k, None, self.stride))
            pairs.append(Pair(apply(predictor, source, i), ahead, source, weight, *known))
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
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        start = self.start.to(context.dtype).expand(len(context), 1, -1)  # [B, 1, D]
        previous = torch.cat((start, context[:, :-1]), dim=1)  # [B, N, D]
        return [Pair(apply(predictor, previous), target, previous, 1.0, *told(given, target))]


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
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        pairs = []
        rolled = context
        for k, weight in enumerate(self.weights, start=1):
            # The last latent has no target; a causal predictor gives the same without it.
            rolled = apply(predictor, rolled[:, :-1])
            known = told(given, target, slice(k, None))
            pairs.append(Pair(rolled, target[:, k:], context[:, :-k], weight, *known))
        return pairs


class TokenRollout(Rollout):
    """Rollout along the text: p_0 = latent n; p_k = predictor(p_{k-1}, token n + k) predicts target n + k.

    All tokens come from the inputs, so the last position predicts nothing. A pair does not count if a
    document starts among its tokens n + 1 .. n + k. Source: NextLat (2511.05963).

    Args:
        detach_tokens: the objective does not train the token table through the tokens it is given.
        hide_tokens: control in which the predictor gets zeros in place of the tokens: parameters, FLOPs and
            pairs stay the same, but only what the latent itself knows can be predicted.
    """

    needs_tokens = True

    @checked
    def __init__(
        self,
        *,
        steps: Count,
        weights: Sequence[NotNegative] | None = None,
        detach_tokens: bool = False,
        hide_tokens: bool = False,
    ) -> None:
        super().__init__(steps=steps, weights=weights)
        self.detach_tokens, self.hide_tokens = detach_tokens, hide_tokens

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        assert predictor is not None
        assert given.tokens is not None
        tokens = given.tokens.detach() if self.detach_tokens else given.tokens
        tokens = torch.zeros_like(tokens) if self.hide_tokens else tokens
        pairs, rolled, apart = [], context, None
        for k, weight in enumerate(self.weights, start=1):
            rolled = predictor(rolled[:, :-1], tokens=tokens[:, k:])
            if given.starts is not None:
                # Position n is cut off at step k if it was at step k - 1 or a document starts at n + k.
                starts = given.starts[:, k:]
                apart = starts if apart is None else apart[:, :-1] | starts
            rows, answers, following = told(given, target, slice(k, None))
            if apart is not None:
                rows = (~apart).float() if rows is None else rows * ~apart
            known = rows, answers, following
            pairs.append(Pair(rolled, target[:, k:], context[:, :-k], weight, *known))
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
