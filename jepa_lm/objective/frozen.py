"""The frozen target: latents of a model that was trained before, and that nothing here trains.

Predicting the latents of a better model lowers the next-token loss of a small one, so this target is the
positive control of every latent objective: a comparison that does not see it sees nothing.
Source: hidden-layer distillation (2605.11513); SALT (2509.24317).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jepa_lm.model import LanguageModel
from jepa_lm.model.ema import as_buffers, keep_float32
from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.objective.passes import MainPass
from jepa_lm.objective.pooling import Pooling
from jepa_lm.objective.taps import Tap, read_tap, tapped_layers
from jepa_lm.objective.targets import Target
from jepa_lm.objective.teacher import OpenTeacher
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, checked
from jepa_lm.utils.paths import program


class Frozen(Target):
    """Target from the model of another run, which reads the same tokens.

    It has no parameters, gets no gradient and is in no checkpoint of the run, which records its path and hash
    instead. It is not projected: the predictor maps to its width.

    Args:
        path: a checkpoint, an artifact or a run folder. dim: width of its hidden states.
    """

    @checked
    def __init__(
        self,
        *,
        path: str,
        dim: Count,
        tap: Tap = "final",
        pooling: Pooling | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__(tap=tap, pooling=pooling, normalisation=normalisation, project=False)
        self.path, self.dim = path, dim
        self.teacher: LanguageModel | None = None
        self.temperature = 1.0
        """What the teacher's own logits are divided by."""

    def load(self, model: LanguageModel, open_teacher: OpenTeacher | None) -> None:
        if open_teacher is None:
            raise UserError(
                f"jepa.target.path={self.path}: only {program('train')} opens a teacher"
            )
        teacher = open_teacher(self.path)
        if teacher.model.vocab_size != model.vocab_size:
            raise UserError(
                f"jepa.target.path={self.path}: the teacher has {teacher.model.vocab_size} tokens, this "
                f"model {model.vocab_size}; both must be trained with one tokenizer"
            )
        if teacher.model.dim != self.dim:
            raise UserError(
                f"jepa.target.dim={self.dim}: the teacher's hidden states have width {teacher.model.dim}; "
                f"set jepa.target.dim={teacher.model.dim}"
            )
        self.record, self.temperature = teacher.record(), teacher.temperature
        self.teacher = as_buffers(teacher.model.eval(), persistent=False).requires_grad_(False)

    def check(self, model: LanguageModel, seq_len: int) -> None:
        super().check(self.source(model), seq_len)

    def check_data(self, tokenizer: str, fields: Mapping[str, int]) -> None:
        assert self.record is not None
        if tokenizer != self.record["tokenizer"]:
            raise UserError(
                f"jepa.target.path={self.path}: the teacher was trained with another tokenizer than this "
                f"data has ({self.record['tokenizer'][:12]}, here {tokenizer[:12]}); use the teacher's "
                "with data.tokenizer.model=FILE"
            )

    def source(self, model: LanguageModel) -> LanguageModel:
        assert self.teacher is not None  # `load` has run
        return self.teacher

    def keep_tables(self, seq_len: int, device: torch.device) -> None:
        if self.teacher is not None:
            self.teacher.backbone.keep_tables(seq_len, device)

    @torch.no_grad()
    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        teacher = self.source(model)
        encoded = teacher.encode(teacher.embed(main.inputs), tapped_layers(teacher, self.tap))
        return read_tap(teacher, encoded, self.tap)

    def train(self, mode: bool = True) -> Frozen:
        """Set the mode of the target; the teacher stays in evaluation."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        """Apply device moves to the teacher, but keep it in float32 under any cast."""
        super()._apply(fn, recurse)
        if self.teacher is not None:
            keep_float32(self.teacher)
        return self
