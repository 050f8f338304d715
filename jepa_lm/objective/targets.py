"""Where targets come from: the same pass, another view, a slowly moving copy, the token table.

Latents [B, T, D] are pooled, projected (by the objective's projector, shared with the context unless
the source says otherwise) and normalised, in this order.
Legend: B batch, T positions, N latents, D model width, E latent width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.model.ema import as_buffers, keep_float32, matched, move_towards
from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.objective.passes import encode_view
from jepa_lm.objective.pooling import Pooling
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.taps import Tap, check_tap, read_tap, tapped_layers
from jepa_lm.objective.views import View
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.errors import UserError


class Target(nn.Module):
    """A source of target latents.

    Args:
        tap: which hidden state, see `jepa_lm.objective.taps`. pooling: None keeps every position.
        normalisation: of the targets alone. project: send them through the objective's projector.
        stop_gradient: the prediction loss does not train through the target. (A regularizer that is
            put on targets still trains the projector, and the model behind a `SamePass`.)
    """

    keeps_copy = False
    """Whether it follows the model by a copy."""

    def __init__(
        self,
        *,
        tap: Tap = "final",
        pooling: Pooling | None = None,
        normalisation: Normalisation | None = None,
        project: bool = True,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.tap, self.pooling, self.normalisation = tap, pooling, normalisation
        self.project, self.stop_gradient = project, stop_gradient

    def check(self, model: LanguageModel, seq_len: int) -> None:
        """Raise UserError for a tap, view or pooling that does not fit model and data."""
        check_tap(model, self.tap, "jepa.target.tap")
        if self.pooling is not None:
            self.pooling.check(seq_len, "jepa.target.pooling")

    def follow(self, model: LanguageModel, projector: nn.Module | None) -> None:
        """Take copies of what it follows, at the start of a run."""

    def after_step(
        self, model: LanguageModel, projector: nn.Module | None, clock: ProgressClock
    ) -> None:
        """Move the copies, after an optimizer step."""

    def distance(self, model: LanguageModel, projector: nn.Module | None) -> Tensor | None:
        """How far the copies are from the online weights, relative to these; None without copies."""
        return None

    def main_taps(self, model: LanguageModel) -> list[int]:
        """Blocks whose outputs the main pass has to keep."""
        return []

    def hidden(
        self,
        model: LanguageModel,
        inputs: Tensor,
        main: Encoded,
        step_context: StepContext,
        reach: int | None,
    ) -> Tensor:
        """[B, T, D] before pooling."""
        raise NotImplementedError

    def forward(
        self,
        model: LanguageModel,
        inputs: Tensor,
        main: Encoded,
        step_context: StepContext,
        reach: int | None,
        projector: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Target latents [B, N, E]."""
        x = self.hidden(model, inputs, main, step_context, reach)
        if self.pooling is not None:
            x = self.pooling(x)
        if self.project and projector is not None:
            x = self._projected(x, projector)
        return x if self.normalisation is None else self.normalisation(x)

    def _projected(self, x: Tensor, projector: Callable[[Tensor], Tensor]) -> Tensor:
        return projector(x)


class SamePass(Target):
    """Hidden states of the main pass itself."""

    def main_taps(self, model: LanguageModel) -> list[int]:
        return tapped_layers(model, self.tap)

    def hidden(
        self,
        model: LanguageModel,
        inputs: Tensor,
        main: Encoded,
        step_context: StepContext,
        reach: int | None,
    ) -> Tensor:
        return read_tap(model, main, self.tap)


class OtherView(Target):
    """The same weights on another view; with `stop_gradient` that pass keeps no gradients."""

    def __init__(
        self,
        *,
        view: View,
        tap: Tap = "final",
        pooling: Pooling | None = None,
        normalisation: Normalisation | None = None,
        project: bool = True,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__(
            tap=tap,
            pooling=pooling,
            normalisation=normalisation,
            project=project,
            stop_gradient=stop_gradient,
        )
        self.view = view

    def check(self, model: LanguageModel, seq_len: int) -> None:
        super().check(model, seq_len)
        self.view.check(seq_len, "jepa.target.view")

    def hidden(
        self,
        model: LanguageModel,
        inputs: Tensor,
        main: Encoded,
        step_context: StepContext,
        reach: int | None,
    ) -> Tensor:
        seen = self.view(inputs, step_context, "target")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            encoded = encode_view(model, seen, tapped_layers(model, self.tap), reach)
        return read_tap(model, encoded, self.tap)


class EmbeddingTable(Target):
    """Rows of the model's token table, no context at all (#1243)."""

    def check(self, model: LanguageModel, seq_len: int) -> None:
        if self.tap != "embedding":
            raise UserError(f"jepa.target.tap={self.tap}: EmbeddingTable reads the embedding only")
        super().check(model, seq_len)

    def hidden(
        self,
        model: LanguageModel,
        inputs: Tensor,
        main: Encoded,
        step_context: StepContext,
        reach: int | None,
    ) -> Tensor:
        trained = not self.stop_gradient and reach is None  # the table lies below every block
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            return model.embedding(inputs)


class EMA(Target):
    """A copy in float32 that follows the online weights: copy <- m copy + (1 - m) online.

    Never trained, kept in checkpoints, not a parameter. Updated after every optimizer step.

    Args:
        part: `all` (the whole encoder, and the projector where there is one), `blocks` (the
            backbone on the online embedding, online projector), or `projector` (the main pass's
            hidden state, projected by the copy).
        momentum: m over the clock.
    """

    keeps_copy = True

    def __init__(
        self,
        *,
        part: str,
        momentum: Schedule,
        tap: Tap = "final",
        pooling: Pooling | None = None,
        normalisation: Normalisation | None = None,
        project: bool = True,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__(
            tap=tap,
            pooling=pooling,
            normalisation=normalisation,
            project=project,
            stop_gradient=stop_gradient,
        )
        if part not in ("all", "blocks", "projector"):
            raise UserError(f"jepa.target.part={part}: all, blocks or projector")
        self.part, self.momentum = part, momentum
        self.encoder: LanguageModel | None = None
        self.projector: nn.Module | None = None

    def follow(self, model: LanguageModel, projector: nn.Module | None) -> None:
        if self.part == "projector" and projector is None:
            raise UserError("jepa.target.part=projector: jepa.projector is null, set one")
        if self.part != "projector":
            self.encoder = _encoder_copy(model, backbone_only=self.part == "blocks")
        if self.part != "blocks" and projector is not None:
            self.projector = as_buffers(copy.deepcopy(projector))

    def main_taps(self, model: LanguageModel) -> list[int]:
        return tapped_layers(model, self.tap) if self.part == "projector" else []

    @torch.no_grad()
    def hidden(
        self,
        model: LanguageModel,
        inputs: Tensor,
        main: Encoded,
        step_context: StepContext,
        reach: int | None,
    ) -> Tensor:
        if self.encoder is None:
            return read_tap(model, main, self.tap).detach()
        embedded = main.embedded if self.part == "blocks" else self.encoder.embed(inputs)
        encoded = self.encoder.encode(embedded, tapped_layers(self.encoder, self.tap))
        return read_tap(self.encoder, encoded, self.tap)

    def _projected(self, x: Tensor, projector: Callable[[Tensor], Tensor]) -> Tensor:
        if self.projector is None:
            return projector(x)
        with torch.no_grad():
            return self.projector(x)

    def _matched(
        self, model: LanguageModel, projector: nn.Module | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Copies and the online tensors that they follow."""
        copies: list[Tensor] = []
        online: list[Tensor] = []
        for mine, theirs in ((self.encoder, model), (self.projector, projector)):
            if mine is not None:
                assert theirs is not None
                found = matched(mine, theirs)
                copies += found[0]
                online += found[1]
        return copies, online

    def after_step(
        self, model: LanguageModel, projector: nn.Module | None, clock: ProgressClock
    ) -> None:
        move_towards(*self._matched(model, projector), self.momentum(clock))

    @torch.no_grad()
    def distance(self, model: LanguageModel, projector: nn.Module | None) -> Tensor:
        copies, online = self._matched(model, projector)
        apart = torch._foreach_norm(torch._foreach_sub(copies, online))
        return torch.stack(apart).norm() / torch.stack(torch._foreach_norm(online)).norm()

    def _apply(self, fn: Any, recurse: bool = True) -> EMA:
        """Moves between devices, but stays in float32 whatever the rest is cast to."""
        super()._apply(fn, recurse)
        for module in (self.encoder, self.projector):
            if module is not None:
                keep_float32(module)
        return self


def _encoder_copy(model: LanguageModel, *, backbone_only: bool) -> LanguageModel:
    """A copy of what `encode` needs, without gradients; the head never runs in it."""
    twin = copy.deepcopy(model)
    del twin.head
    twin.logit_bias = None
    if backbone_only:
        del twin.embedding
        twin.bigram = twin.value_embedding = twin.smear = None
    return as_buffers(twin)
