"""The two views of a pair, encoded apart: from the end of the first, the end of the second is predicted.

    first view, k predictor tokens -> hidden state at the last token \\
                                                                       latents [B, 2, D]
    second view                    -> hidden state at its last byte  /

The predictor is the model itself, which reads k learned tokens after the first view; with k = 0 the hidden
state at its end is the prediction. Source: LLM-JEPA (2509.14252). There the tokens are of the vocabulary;
here they are vectors of the objective, which never ship.
Legend: B batch, T positions, k predictor tokens, L = T + k, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from jepa_lm.data.rows import VIEWS
from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel, Mask
from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.objective.passes import MainPass
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.targets import Target
from jepa_lm.objective.views import Packing, Seen, View
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, NotNegative, Whole, checked


class PairViews(View):
    """Both views of each row, which make two latents: the prediction, and what is predicted.

    Args:
        dim: D. tokens: k. start_std: their vectors start at N(0, start_std).
        packed: encode both views of a row in one row of L positions, each blind to the other; else in two
            rows of L. The latents are the same.
    """

    @checked
    def __init__(self, *, dim: Count, tokens: Whole, packed: bool, start_std: NotNegative) -> None:
        super().__init__()
        self.tokens, self.packed = tokens, packed
        self.vector = nn.Parameter(start_std * torch.randn(tokens, dim)) if tokens else None

    def check(self, seq_len: int, key: str) -> None:
        if key != "jepa.context.view":
            raise UserError(
                f"{key}: PairViews makes both latents, so it belongs to jepa.context.view"
            )
        if seq_len < 2:
            raise UserError(f"data.seq_len={seq_len}: two views need at least 2 positions")

    def length(self, seq_len: int) -> int:
        return seq_len + self.tokens

    def of(self, batch: Batch, step_context: StepContext, purpose: str) -> Seen:
        if VIEWS not in batch:
            raise UserError(
                "jepa.target: PairViews makes both latents; use jepa_lm.objective.pair_views.OtherLatent"
            )
        inputs, starts, stops = batch["inputs"], batch[VIEWS][:, 0::2], batch[VIEWS][:, 1::2]
        B, T = inputs.shape
        place = torch.arange(self.length(T), device=inputs.device)  # [L]
        # What follows a view in its row is not cut off: no position that is read can see it.
        taken = (starts[..., None] + place).clamp(max=T - 1)  # [B, 2, L]
        views = inputs[:, None].expand(-1, 2, -1).gather(2, taken).flatten(0, 1)  # [2 B, L]
        written = stops - starts  # [B, 2], tokens of a view
        mask = self._mask(place, written)
        written = torch.stack((written[:, 0] + self.tokens, written[:, 1]), dim=1)
        rows = torch.arange(B, device=inputs.device)[:, None]
        if not self.packed:
            both = torch.arange(2, device=inputs.device)
            read = (2 * rows + both) * len(place) + written - 1
            return Seen(views, mask, None, read)
        block = (place >= written[:, :1]).long()  # [B, L]
        order = torch.where(block > 0, len(place) + place - written[:, :1], place)
        read = rows * len(place) + written.cumsum(1) - 1
        return Seen(views, mask, None, read, Packing(order, block))

    def _mask(self, place: Tensor, written: Tensor) -> Mask | None:
        """Return where the predictor tokens are among the views [2 B, L], and their vectors [2 B, L, D]."""
        if self.vector is None:
            return None
        number = place - written[:, :1]  # [B, L]
        inside = (number >= 0) & (number < self.tokens)
        where = torch.stack((inside, torch.zeros_like(inside)), dim=1).flatten(0, 1)
        vectors = self.vector[number.clamp(0, self.tokens - 1)]  # [B, L, D]
        return Mask(where, vectors.repeat_interleave(2, dim=0), False)


class OtherLatent(Target):
    """Target from the latents of `PairViews`, which makes both sides; `Offsets` [1] pairs them.

    Args:
        normalisation, stop_gradient: see `Target`.
    """

    @checked
    def __init__(
        self, *, normalisation: Normalisation | None = None, stop_gradient: bool = True
    ) -> None:
        super().__init__(normalisation=normalisation, project=False, stop_gradient=stop_gradient)

    def check_data(self, tokenizer: str, fields: Mapping[str, int]) -> None:
        if VIEWS not in fields:
            raise UserError(
                "jepa.context.view: these data have no pairs, whose two views it reads; data=pairs and "
                "data=regex do"
            )

    def stand_in(self, inputs: Tensor) -> Batch:
        return {VIEWS: inputs.new_tensor([0, 1, 1, 2]).expand(len(inputs), 4)}

    def hidden(self, model: LanguageModel, main: MainPass) -> Tensor:
        assert main.context is not None
        return main.context
