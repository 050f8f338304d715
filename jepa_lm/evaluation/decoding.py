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

    Every token takes a pass over the rows as far as they are written, so any model can do it. The answers
    that the rows hold are never shown to it. The model should be in evaluation mode.

    Args:
        rows: whole rows [R, T + 1]; a model writes as far as its row goes, where it has been trained.
        starts: place of the first token to write in each row [R], at least 1. length: A.
        end: token after which a row is finished, and which fills the rest; None if every row has room for A
            tokens and none ends.
    """
    width, device = rows.shape[1], rows.device
    unwritten = torch.arange(width) >= torch.from_numpy(starts)[:, None]
    ids = rows.masked_fill(unwritten.to(device), 0)
    answers = torch.full((len(rows), length), 0 if end is None else end, device=device)
    going = torch.ones(len(rows), dtype=torch.bool, device=device)
    row = torch.arange(len(rows), device=device)
    for i in range(length):
        going &= torch.from_numpy(starts + i < width).to(device)
        if not going.any():
            break
        at = np.minimum(starts + i, width - 1)  # the place to be written
        first, stop = int(at.min()) - 1, int(at.max())
        place = torch.from_numpy(at).to(device)
        hidden = model.tail(ids[:, :stop], stop - first)[row, place - 1 - first]
        likeliest = model.logits(hidden[:, None])[:, 0].argmax(-1)
        answers[:, i] = torch.where(going, likeliest, answers[:, i])
        ids[row, place] = torch.where(going, likeliest, ids[row, place])
        if end is not None:
            going &= likeliest != end
    return answers
