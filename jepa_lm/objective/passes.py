"""Passes of an encoder for an objective: other views, and gradients that stop below the last blocks."""

from __future__ import annotations

from collections.abc import Collection

import torch

from jepa_lm.model import Embedded, Encoded, LanguageModel
from jepa_lm.objective.views import Seen


def kept_block(model: LanguageModel, reach: int | None) -> int | None:
    """Where the main pass has to be kept for an objective that reaches the last `reach` blocks."""
    return None if reach is None else model.layers - reach


def limit_reach(
    model: LanguageModel, main: Encoded, taps: Collection[int], reach: int | None
) -> Encoded:
    """The main pass with gradients to its last `reach` blocks only; those blocks run once more."""
    if reach is None:
        return main
    assert main.carry is not None
    return model.resume(_detached(main.embedded), main.carry.detach(), taps)


def encode_view(
    model: LanguageModel, seen: Seen, taps: Collection[int], reach: int | None
) -> Encoded:
    """A pass over a view, with gradients to its last `reach` blocks only."""
    if reach is None:
        return model.encode(model.embed(seen.inputs, seen.mask), taps)
    with torch.no_grad():
        embedded = model.embed(seen.inputs, seen.mask)
        carry = model.begin(embedded, until=model.layers - reach, taps=taps)
    return model.resume(embedded, carry, taps)


def _detached(embedded: Embedded) -> Embedded:
    values = {layer: v.detach() for layer, v in embedded.values.items()}
    return Embedded(embedded.x.detach(), values)
