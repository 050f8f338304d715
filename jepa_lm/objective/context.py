"""The context: the latents that predictions are made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lm.model import LanguageModel
from jepa_lm.objective.padding import latents_of_text
from jepa_lm.objective.passes import MainPass, own_pass
from jepa_lm.objective.pooling import Pooling
from jepa_lm.objective.taps import Tap, check_tap, read_tap, tapped_layers
from jepa_lm.objective.views import View
from jepa_lm.utils.kinds import checked


class Context(nn.Module):
    """A view of the text, a tap on its pass and a pooling.

    Args:
        view: what the encoder sees; None reuses the main pass, without a second one.
        tap: which hidden state to read, see `jepa_lm.objective.taps`.
        pooling: None keeps every position.
        stop_gradient: the objective does not train the trunk through the context.
    """

    @checked
    def __init__(
        self,
        *,
        view: View | None = None,
        tap: Tap = "final",
        pooling: Pooling | None = None,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.view, self.tap, self.pooling, self.stop_gradient = view, tap, pooling, stop_gradient

    def check(self, model: LanguageModel, seq_len: int) -> None:
        """Raise UserError if the tap, view or pooling does not fit the model and the data."""
        check_tap(model, self.tap, "jepa.context.tap")
        if self.view is not None:
            self.view.check(seq_len, "jepa.context.view")
        if self.pooling is not None:
            self.pooling.check(seq_len, "jepa.context.pooling")

    def main_taps(self, model: LanguageModel) -> list[int]:
        """Return the blocks whose outputs the main pass has to keep."""
        return tapped_layers(model, self.tap) if self.view is None else []

    def forward(self, model: LanguageModel, main: MainPass) -> tuple[Tensor, Tensor | None]:
        """Return latents [B, N, D] and the masked positions [M], or None if the view masks none."""
        masked = None
        if self.view is None:
            encoded = main.encoded
        else:
            taps = tapped_layers(model, self.tap)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
                seen, encoded = own_pass(model, main, self.view, taps, "context")
            masked = seen.positions
        hidden = read_tap(model, encoded, self.tap)
        if self.view is not None:
            hidden = seen.latents(hidden)
        if self.stop_gradient:
            hidden = hidden.detach()
        return latents_of_text(hidden, self, model, main.batch), masked
