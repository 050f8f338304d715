"""The target that comes with the data: what a generator knows beyond the tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.objective.passes import MainPass
from jepa_lm.objective.pooling import Pooling
from jepa_lm.objective.targets import Target
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, checked


class BatchTarget(Target):
    """Target from the data: what a generator knows beyond the tokens, such as the law of its hidden state.

    Args:
        field: of the batch, [B, T, dim]. dim: its width.
    """

    gives_laws = True

    @checked
    def __init__(
        self,
        *,
        field: str,
        dim: Count,
        pooling: Pooling | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__(pooling=pooling, normalisation=normalisation, project=False)
        self.field, self.dim = field, dim

    def stand_in(self, inputs: Tensor) -> Batch:
        """Return uniform laws."""
        shape = (*inputs.shape, self.dim)
        return {self.field: inputs.new_full(shape, 1 / self.dim, dtype=torch.float)}

    def check_data(self, tokenizer: str, fields: Mapping[str, int]) -> None:
        if self.field not in fields:
            known = ", ".join(fields) or "none beside its tokens"
            raise UserError(
                f"jepa.target.field={self.field}: these data have no such field (they have {known}); "
                "data=hmm has latents"
            )
        if fields[self.field] != self.dim:
            raise UserError(
                f"jepa.target.dim={self.dim}: the {self.field} of these data have width "
                f"{fields[self.field]}; set jepa.target.dim={fields[self.field]}"
            )

    def width(self, model: LanguageModel) -> int:
        return self.dim

    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        return main.batch[self.field]
