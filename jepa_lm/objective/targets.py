"""Sources of targets: the main pass, another view, a moving average of the model, the token table.

Hidden states [B, T, D] are pooled, projected (by the objective's projector, shared with the context
unless the source has its own) and normalised, in this order.
Legend: B batch, T positions, N latents, D model width, E latent width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.model.ema import as_buffers, keep_float32, matched, move_towards
from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.objective.padding import latents_of_text
from jepa_lm.objective.passes import MainPass, own_pass
from jepa_lm.objective.pooling import Pooling
from jepa_lm.objective.taps import Tap, check_tap, read_tap, tap_width, tapped_layers
from jepa_lm.objective.teacher import OpenTeacher
from jepa_lm.objective.views import View
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import checked


class Target(nn.Module):
    """A source of target latents.

    Args:
        tap: which hidden state to read, see `jepa_lm.objective.taps`. pooling: None keeps every position.
        normalisation: applied to the targets alone. project: apply the objective's projector.
        stop_gradient: the prediction loss does not train through the target. (A regularizer on the
            targets still trains the projector, and the model behind a `SamePass`.)
    """

    gives_laws = False
    """True if the latents are probabilities."""
    keeps_copy = False
    """True if the target keeps a copy that follows the model."""
    record: Mapping[str, str] | None = None
    """What a run records of the model that the target was loaded from."""

    @checked
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
        """Raise UserError if the tap, view or pooling does not fit the model and the data."""
        check_tap(model, self.tap, "jepa.target.tap")
        if self.pooling is not None:
            self.pooling.check(seq_len, "jepa.target.pooling")

    def stand_in(self, inputs: Tensor) -> Batch:
        """Return the fields of a batch that the objective reads beside inputs [B, T], without data."""
        return {}

    def load(self, model: LanguageModel, open_teacher: OpenTeacher | None) -> None:
        """Load the model that the target reads, at the start of a run."""

    def check_data(self, tokenizer: str, fields: Mapping[str, int]) -> None:
        """Raise UserError if the target cannot read the data.

        Args:
            tokenizer: its fingerprint. fields: widths K of the fields [B, T, K] of a batch.
        """

    def source(self, model: LanguageModel) -> LanguageModel:
        """Return the model that the target latents come from; its head can read them."""
        return model

    def width(self, model: LanguageModel) -> int:
        """Return D of the hidden states."""
        return tap_width(self.tap, self.source(model).dim)

    def keep_tables(self, seq_len: int, device: torch.device) -> None:
        """Make what compiled passes of the target's own model read."""

    def follow(self, model: LanguageModel, projector: nn.Module | None) -> None:
        """Copy the modules that the target follows, at the start of a run."""

    def after_step(
        self, model: LanguageModel, projector: nn.Module | None, clock: ProgressClock
    ) -> None:
        """Update the copies after an optimizer step."""

    def distance(self, model: LanguageModel, projector: nn.Module | None) -> Tensor | None:
        """Return the relative distance of the copies from the online weights; None without copies."""
        return None

    def main_taps(self, model: LanguageModel) -> list[int]:
        """Return the blocks whose outputs the main pass has to keep."""
        return []

    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        """Return the hidden states [B, T, D] before pooling."""
        raise NotImplementedError

    def forward(
        self,
        model: LanguageModel,
        main: MainPass,
        projector: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Return the target latents [B, N, E]."""
        x = latents_of_text(self.hidden(model, main), self, self.source(model), main.batch)
        if self.project and projector is not None:
            x = self._projected(x, projector)
        return x if self.normalisation is None else self.normalisation(x)

    def _projected(self, x: Tensor, projector: Callable[[Tensor], Tensor]) -> Tensor:
        return projector(x)


class SamePass(Target):
    """Target from the hidden states of the main pass."""

    def main_taps(self, model: LanguageModel) -> list[int]:
        return tapped_layers(model, self.tap)

    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        return read_tap(model, main.encoded, self.tap)


class OtherView(Target):
    """Target from another view, encoded by the same weights; without gradients if `stop_gradient`."""

    @checked
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

    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        taps = tapped_layers(model, self.tap)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            _, encoded = own_pass(model, main, self.view, taps, "target")
        return read_tap(model, encoded, self.tap)


class EmbeddingTable(Target):
    """Target from the model's token table, without any context (#1243)."""

    def check(self, model: LanguageModel, seq_len: int) -> None:
        if self.tap != "embedding":
            raise UserError(
                f"jepa.target.tap={self.tap}: EmbeddingTable needs jepa.target.tap=embedding"
            )
        super().check(model, seq_len)

    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        trained = not self.stop_gradient and main.reach is None  # the table lies below every block
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            return model.embedding(main.inputs)


class EMA(Target):
    """Target from a float32 copy that follows the online weights: copy <- m copy + (1 - m) online.

    The copy is never trained, has no parameters (only buffers) and is saved in checkpoints. It is updated
    after every optimizer step.

    Args:
        part: what is copied: `all` (the whole encoder, and the projector if there is one), `blocks`
            (the backbone, which reads the online embedding; online projector), or `projector` (which
            projects the hidden state of the main pass).
        momentum: schedule of m.
    """

    keeps_copy = True

    @checked
    def __init__(
        self,
        *,
        part: Literal["all", "blocks", "projector"],
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
    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        if self.encoder is None:
            return read_tap(model, main.encoded, self.tap).detach()
        online = self.part == "blocks"
        embedded = main.encoded.embedded if online else self.encoder.embed(main.inputs)
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
        """Return the copies and the online tensors that they follow, in the same order."""
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
        """Apply device moves to the copies, but keep them in float32 under any cast."""
        super()._apply(fn, recurse)
        for module in (self.encoder, self.projector):
            if module is not None:
                keep_float32(module)
        return self


def _encoder_copy(model: LanguageModel, *, backbone_only: bool) -> LanguageModel:
    """Return a copy of what `encode` needs, without gradients and without the head."""
    twin = copy.deepcopy(model)
    del twin.head
    twin.logit_bias = None
    if backbone_only:
        del twin.embedding
        twin.bigram = twin.value_embedding = twin.smear = None
    return as_buffers(twin)
