"""Taps: the hidden states of a pass that an objective reads.

A tap is a name, a block (negative ones count from the end), a list of blocks whose outputs are averaged, or
`Blocks`. Names: `final` (after the final norm), `last` (before it and before the injection),
`embedding` (the embedded input), `boundary` (output of the U-Net's last encoder block),
`injector_latent` and `injector_prediction` (of a model with an injector).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import check_type, checked

Name = Literal["final", "last", "embedding", "boundary", "injector_latent", "injector_prediction"]
INJECTOR = "injector"
"""Taps with this prefix have one latent per whole chunk."""


class Blocks:
    """Outputs of several blocks, each normalised by itself, as their mean or side by side.

    Sources: data2vec (2202.03555), the mean of the top blocks; Bootleg (2603.15553), several layers at once.

    Args:
        blocks: which ones; negative ones count from the end. normalisation: of each output, or None.
        join: mean, [B, T, D]; or concat, [B, T, D x blocks], in the order of the list.
    """

    @checked
    def __init__(
        self,
        *,
        blocks: list[int],
        normalisation: Normalisation | None = None,
        join: Literal["mean", "concat"] = "mean",
    ) -> None:
        if not blocks:
            raise UserError("blocks=[]: needs at least one block")
        self.blocks, self.normalisation, self.join = blocks, normalisation, join

    def of(self, outputs: list[Tensor]) -> Tensor:
        """Join the outputs of the blocks, [B, T, D] each."""
        if self.normalisation is not None:
            outputs = [self.normalisation(x) for x in outputs]
        if self.join == "concat":
            return torch.cat(outputs, dim=-1)
        return _mean(outputs)


Tap = Name | int | list[int] | Blocks


def _blocks(tap: int | list[int] | Blocks) -> list[int]:
    if isinstance(tap, Blocks):
        return tap.blocks
    return [tap] if isinstance(tap, int) else tap


def tap_width(tap: Tap, dim: int) -> int:
    """Return the width of the hidden states that a tap reads in a model of width D."""
    side_by_side = isinstance(tap, Blocks) and tap.join == "concat"
    return dim * len(tap.blocks) if side_by_side else dim  # type: ignore[union-attr]


def tapped_layers(model: LanguageModel, tap: Tap) -> list[int]:
    """Return the blocks whose outputs a tap needs."""
    if tap == "boundary":
        return [model.backbone.skips - 1]
    if isinstance(tap, str):
        return []
    return [i % model.layers for i in _blocks(tap)]


def check_tap(model: LanguageModel, tap: Tap, key: str) -> None:
    """Raise UserError if the model has no such hidden state; `key` is the config key of the tap."""
    check_type(key, tap, Tap)
    if isinstance(tap, str):
        if tap.startswith(INJECTOR) and model.injector is None:
            raise UserError(f"{key}={tap}: the model has no injector; add model/injector=chunk")
        if tap == "boundary" and model.backbone.skips < 1:
            raise UserError(f"{key}=boundary: a backbone of one block has no encoder half")
        return
    setting = f"{key}.blocks={tap.blocks}" if isinstance(tap, Blocks) else f"{key}={tap}"
    for layer in _blocks(tap):
        if not -model.layers <= layer < model.layers:
            raise UserError(
                f"{setting}: block {layer} does not exist, the backbone has blocks "
                f"0..{model.layers - 1}"
            )
    if len(set(tapped_layers(model, tap))) < len(_blocks(tap)):
        raise UserError(
            f"{setting}: reads a block twice, as the backbone has {model.layers}; name different ones"
        )


def read_tap(model: LanguageModel, encoded: Encoded, tap: Tap) -> Tensor:
    """Return the hidden state [B, T, D] of a pass that a tap names."""
    if tap == "final":
        return encoded.final
    if tap == "last":
        return encoded.last
    if tap == "embedding":
        return encoded.embedded.x
    if isinstance(tap, str) and tap.startswith(INJECTOR):
        assert encoded.injected is not None
        injected = encoded.injected
        return injected.latents if tap == "injector_latent" else injected.predictions
    outputs = [encoded.taps[layer] for layer in tapped_layers(model, tap)]
    return tap.of(outputs) if isinstance(tap, Blocks) else _mean(outputs)


def _mean(outputs: list[Tensor]) -> Tensor:
    return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
