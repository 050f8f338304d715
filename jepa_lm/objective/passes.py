"""Encoder passes of an objective: other views, and gradients that stop below the last blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import Embedded, Encoded, LanguageModel
from jepa_lm.model.transformer import TransformerBlock
from jepa_lm.model.unet import Carry
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.views import Packing, Seen, View
from jepa_lm.utils.errors import UserError


class MainPass(NamedTuple):
    """A micro-batch as the main pass has read it: what contexts and targets are made from."""

    batch: Batch
    """`inputs` and `targets` [B, T], and what else the data has."""
    encoded: Encoded
    step_context: StepContext
    reach: int | None
    """Train only the last `reach` blocks; None trains all."""
    context: Tensor | None = None
    """The context's latents [B, N, D], once they are made."""

    @property
    def inputs(self) -> Tensor:
        """Token ids [B, T]."""
        return self.batch["inputs"]


def limit_reach(
    model: LanguageModel, main: Encoded, taps: Collection[int], reach: int | None
) -> Encoded:
    """Return the main pass with gradients only to its last `reach` blocks, which run once more."""
    if reach is None:
        return main
    assert main.carry is not None
    return model.resume(_detached(main.embedded), main.carry.detach(), taps)


def encode_view(
    model: LanguageModel, seen: Seen, taps: Collection[int], reach: int | None
) -> Encoded:
    """Encode a view, with gradients only to the last `reach` blocks (all if None)."""
    if seen.packing is not None:
        return _encode_packed(model, seen, seen.packing, taps, reach)
    if reach is None:
        return model.encode(model.embed(seen.inputs, seen.mask), taps)
    with torch.no_grad():
        embedded = model.embed(seen.inputs, seen.mask)
        carry = model.begin(embedded, until=model.layers - reach, taps=taps)
    return model.resume(embedded, carry, taps)


def own_pass(
    model: LanguageModel, main: MainPass, view: View, taps: Collection[int], place: str
) -> tuple[Seen, Encoded]:
    """Encode a view of the batch beside the main pass; the loss that shares the view finds it."""
    seen = view.of(main.batch, main.step_context.at(place), place)
    encoded = encode_view(model, seen, taps, main.reach)
    if view.shared:
        main.step_context.passes[place] = main.encoded, encoded
    return seen, encoded


def _encode_packed(
    model: LanguageModel, seen: Seen, packing: Packing, taps: Collection[int], reach: int | None
) -> Encoded:
    """Encode rows packed into fewer, with the hidden states that each has alone.

    What depends on neighbours (bigrams, the smear gate) is embedded before packing. Rotary positions go on
    from one to the next, as published, and count by their differences alone (unless `rope_train_length` makes
    the base grow with the length).
    """
    if model.injector is not None:
        raise UserError(
            "jepa.context.view.packed=true: the injector's chunks would hold two views; set it to false"
        )
    trained = torch.is_grad_enabled() and reach is None
    with torch.set_grad_enabled(trained):
        apart = model.embed(seen.inputs, seen.mask)
        x, values = _packed(apart.x, packing), apart.values
        embedded = Embedded(x, {layer: _packed(v, packing) for layer, v in values.items()})
    block = packing.block
    visible = (block[:, :, None] == block[:, None, :]).tril()[:, None]  # [B, 1, T', T']
    run = partial(_blinded, model, visible, embedded.values)
    carry = Carry(0, embedded.x, embedded.x, (), {})
    cut = 0 if reach is None else model.layers - reach
    with torch.set_grad_enabled(trained):
        carry = model.backbone(carry, embedded.values, until=cut, taps=taps, run=run)
    carry = model.backbone(carry, embedded.values, until=model.layers, taps=taps, run=run)
    return model.resume(embedded, carry, taps)


def _blinded(
    model: LanguageModel,
    visible: Tensor,
    values: Mapping[int, Tensor],
    layer: int,
    x: Tensor,
    x0: Tensor,
) -> Tensor:
    """Run a block in which positions see what `visible` says [B, 1, T, T]; see `RunBlock`."""
    block = model.backbone.blocks[layer]
    if not isinstance(block, TransformerBlock):
        raise UserError(
            "jepa.context.view.packed=true: this backbone has no attention to mask; set it to false"
        )
    return block.tail(x, x0, values.get(layer), None, visible)


def _packed(x: Tensor, packing: Packing) -> Tensor:
    """[B', L, D], B' a multiple of B -> [B, T', D]."""
    order = packing.order
    whole = x.reshape(len(order), -1, x.shape[-1])
    return whole.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def _detached(embedded: Embedded) -> Embedded:
    values = {layer: v.detach() for layer, v in embedded.values.items()}
    return Embedded(embedded.x.detach(), values)
