"""Greedy decoding of many rows at a time: each token is the likeliest after all before it.

Legend: R rows, T inputs of a row, A tokens of an answer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_lm.model import LanguageModel


def greedy_answers(
    model: LanguageModel, rows: Tensor, starts: np.ndarray, *, length: int, end: int | None
) -> Tensor:
    """Return what a model writes from a place in each row on, [R, A] int64.

    The answers that the rows hold are a draft, and change nothing but the time: one pass over the rows finds
    how far the model would have written the same, and its first other token. From there on, every token takes
    a pass over the rows that are not finished, so any causal model can do it. The model should be in
    evaluation mode.

    Args:
        rows: whole rows [R, T + 1]; a model writes as far as its row goes, where it has been trained.
        starts: place of the first token to write in each row [R], at least 1. length: A.
        end: token after which a row is finished, and which fills the rest; None if every row has room for A
            tokens and none ends.
    """
    width, device = rows.shape[1], rows.device
    start = torch.from_numpy(starts).to(device)[:, None]
    places = start + torch.arange(length, device=device)  # [R, A]
    answers, written = _as_drafted(model, rows, places)
    if end is not None:
        ended = ((answers == end) & (places < start + written)).cumsum(1) > 0
        answers = answers.masked_fill(ended | (places >= start + written), end)
        written = torch.where(ended[:, -1:], length, written)
    ids = rows.masked_fill(torch.arange(width, device=device) >= start, 0)
    number = torch.arange(len(rows), device=device)[:, None].expand_as(places)
    inside = places < torch.minimum(start + written, start.new_tensor(width))
    ids[number[inside], places[inside]] = answers[inside]
    written, start = written[:, 0], start[:, 0]
    while len(row := ((written < length) & (start + written < width)).nonzero()[:, 0]):
        at = (start + written)[row]  # the place to be written
        first, stop = int(at.min()) - 1, int(at.max())
        hidden = model.tail(ids[row, :stop], stop - first)
        hidden = hidden[torch.arange(len(row), device=device), at - 1 - first]
        likeliest = model.logits(hidden[:, None])[:, 0].argmax(-1)
        answers[row, written[row]] = likeliest
        ids[row, at] = likeliest
        written[row] += 1
        if end is not None:
            written[row[likeliest == end]] = length
    return answers


def _as_drafted(model: LanguageModel, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the model writes at places [R, A], and how much of it follows its own tokens [R, 1]."""
    width = rows.shape[1]
    first = int(places.min()) - 1
    hidden = model.tail(rows[:, :-1], width - 1 - first)
    row = torch.arange(len(rows), device=rows.device)[:, None]
    own = model.logits(hidden[row, (places - 1).clamp(max=width - 2) - first]).argmax(-1)
    same = (own == rows.gather(1, places.clamp(max=width - 1))) & (places < width)
    room = (places < width).sum(1, keepdim=True)
    return own, torch.minimum(same.cumprod(1).sum(1, keepdim=True) + 1, room)
