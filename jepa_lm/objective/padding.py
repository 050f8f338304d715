"""Rows that end in padding: latents are made of their text alone.

Statistics of a regularizer and batch norms take every latent of a row, so a latent of padding may not be
among them. Shapes stay fixed, so that nothing compiles anew: the latents of the text, in order and as often
as they fit, stand in the places of padding. Prediction losses leave those places out (`Pair.rows`).
Legend: B batch, T positions, S hidden states of a view or tap, N latents, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.objective.pooling import Pooling
from jepa_lm.objective.taps import INJECTOR, Tap
from jepa_lm.objective.views import View


def text_of(batch: Batch, model: LanguageModel, tap: Tap, view: View | None) -> Tensor | None:
    """Return which hidden states [B, S] of a tap on a view are of text; None if the batch has no padding."""
    whole = batch.get("whole")
    if whole is None:
        return None
    if view is not None:
        whole = whole[:, -view.length(whole.shape[1]) :]
    if isinstance(tap, str) and tap.startswith(INJECTOR) and model.injector is not None:
        whole = whole.unfold(1, model.injector.chunk, model.injector.chunk).all(-1)
    return whole


def latents_of_text(hidden: Tensor, pooling: Pooling | None, text: Tensor | None) -> Tensor:
    """Pool hidden states [B, S, D] to latents [B, N, D].

    Args:
        text: which states are of text [B, S]; padding follows it. What is not told of each of the states,
            such as the few that a view of pairs reads, has none.
    """
    if text is None or text.shape[1] != hidden.shape[1]:
        return hidden if pooling is None else pooling(hidden)
    if pooling is not None:
        # A pooling is a mean, so this is the mean over the text in it.
        share = pooling(text[..., None].float())  # [B, N, 1]
        hidden = (pooling(hidden * text[..., None]) / share.clamp(min=1e-6)).to(hidden.dtype)
        text = share[..., 0] > 0
    length = text.sum(1, keepdim=True).clamp(min=1)
    places = torch.arange(hidden.shape[1], device=hidden.device) % length  # [B, N]
    return hidden.gather(1, places[..., None].expand_as(hidden))


def holds_text(text: Tensor | None, pooling: Pooling | None) -> Tensor | None:
    """Return which latents [B, N] are of any text, given the states that are [B, S]."""
    if text is None or pooling is None:
        return text
    return pooling(text[..., None].float())[..., 0] > 0


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return which latents are of text on both sides; None if it is not told of the same latents."""
    if one is None or other is None or one.shape != other.shape:
        return None
    return one & other
