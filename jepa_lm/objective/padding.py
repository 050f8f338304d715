"""Rows that end in padding: latents are made of their text alone.

Statistics of a regularizer and batch norms take every latent of a row, so a latent of padding may not be
among them. Shapes stay fixed, so that nothing compiles anew: the latents of the text, in order and as often
as they fit, stand in the places of padding. Prediction losses leave those places out (`Pair.rows`).
Legend: B batch, T positions, S hidden states of a view or tap, N latents, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.objective.pooling import Pooling
from jepa_lm.objective.taps import INJECTOR, Tap
from jepa_lm.objective.views import View


class Side(Protocol):
    """A context or a target; one that makes its own pass has a `view`."""

    tap: Tap
    pooling: Pooling | None


def latents_of_text(hidden: Tensor, side: Side, model: LanguageModel, batch: Batch) -> Tensor:
    """Pool the hidden states [B, S, D] of a side to latents [B, N, D], of text alone.

    What is not told of each of the states, such as the few that a view of pairs reads, has no padding.
    """
    text = _states_of_text(side, model, batch)
    if text is None or text.shape[1] != hidden.shape[1]:
        return hidden if side.pooling is None else side.pooling(hidden)
    if side.pooling is not None:
        # A pooling is a mean, so this is the mean over the text in it.
        share = side.pooling(text[..., None].float())  # [B, N, 1]
        hidden = (side.pooling(hidden * text[..., None]) / share.clamp(min=1e-6)).to(hidden.dtype)
        text = share[..., 0] > 0
    return repeated(hidden, text)


def repeated(x: Tensor, text: Tensor | None) -> Tensor:
    """Return x [B, N, D] with what is of text [B, N] in the places of the padding after it, if any."""
    if text is None:
        return x
    length = text.sum(1, keepdim=True).clamp(min=1)
    places = torch.arange(x.shape[1], device=x.device) % length  # [B, N]
    return x.gather(1, places[..., None].expand_as(x))


def of_text(side: Side, model: LanguageModel, batch: Batch) -> Tensor | None:
    """Return which latents of a side are of any text [B, N], bool; None if the batch has no padding."""
    text = _states_of_text(side, model, batch)
    if text is None or side.pooling is None:
        return text
    return side.pooling(text[..., None].float())[..., 0] > 0


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return which latents are of text on both sides; None if it is not told of the same latents."""
    if one is None or other is None or one.shape != other.shape:
        return None
    return one & other


def _states_of_text(side: Side, model: LanguageModel, batch: Batch) -> Tensor | None:
    """Return which hidden states of a side are of text [B, S]."""
    text: Tensor | None = batch.get("whole")
    if text is None:
        return None
    view: View | None = getattr(side, "view", None)
    if view is not None:
        text = text[:, -view.length(text.shape[1]) :]
    if isinstance(side.tap, str) and side.tap.startswith(INJECTOR) and model.injector is not None:
        text = text.unfold(1, model.injector.chunk, model.injector.chunk).all(-1)
    return text
