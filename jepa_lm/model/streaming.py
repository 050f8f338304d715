"""Read a text of any length piece by piece, with a recurrent model that keeps a state of fixed size.

Legend: B batch, T positions, D model width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_lm.model.language_model import LanguageModel
from jepa_lm.model.layers import rms_norm

LOOK_BACK = 2
"""Earlier ids that an embedding depends on: the smear gate reads the previous position, whose bigram
feature reads the one before that."""


class TextState(NamedTuple):
    """State of a recurrent model after the text so far."""

    ids: Tensor
    """The last `LOOK_BACK` ids [B, 2], or fewer at the start."""
    blocks: list[Any]
    """State of each block: a named tuple of tensors whose first dimension is B."""

    def first(self, texts: int) -> TextState:
        """Return the state of the first `texts` texts of the batch."""
        blocks = [type(state)(*(t[:texts] for t in state)) for state in self.blocks]
        return TextState(self.ids[:texts], blocks)


def why_not_stream(model: LanguageModel) -> str | None:
    """Return why `read_on` cannot give the scores of one long pass; None if it can."""
    if not model.backbone.recurrent:
        return (
            "attention has no state of fixed size, and windows cannot reuse keys and values "
            "exactly: above the first layer they depend on a different left context"
        )
    if model.injector is not None:
        return "the injector works on whole chunks, so a piece of text may need the text after it"
    return None


def read_on(
    model: LanguageModel, inputs: Tensor, state: TextState | None
) -> tuple[Tensor, TextState]:
    """Continue reading from a state; None is the start of a text.

    Any split of a text into pieces gives the hidden states of one pass over the whole text.

    Args:
        inputs: [B, T] int64.

    Returns:
        Hidden states after the final norm [B, T, D], and the state after the last position.
    """
    assert why_not_stream(model) is None
    ids = inputs if state is None else torch.cat((state.ids, inputs), dim=1)
    x0 = model.embed(ids).x[:, ids.shape[1] - inputs.shape[1] :]
    states = [None] * model.layers if state is None else state.blocks
    x, after = model.backbone.stream(x0, states)
    return rms_norm(x, model.final_norm_eps), TextState(ids[:, -LOOK_BACK:], after)
