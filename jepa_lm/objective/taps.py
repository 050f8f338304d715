"""Taps: the hidden states of a pass that an objective reads.

A tap is a name, a block (negative ones count from the end), or a list of blocks whose outputs are
averaged. Names: `final` (after the final norm), `last` (before it and before the injection),
`embedding` (the embedded input), `boundary` (output of the U-Net's last encoder block),
`injector_latent` and `injector_prediction` (of a model with an injector).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.utils.errors import UserError

Name = Literal["final", "last", "embedding", "boundary", "injector_latent", "injector_prediction"]
Tap = Name | int | list[int]
INJECTOR = "injector"
"""Taps with this prefix have one latent per whole chunk."""


def tapped_layers(model: LanguageModel, tap: Tap) -> list[int]:
    """Return the blocks whose outputs a tap needs."""
    if tap == "boundary":
        return [model.backbone.skips - 1]
    if isinstance(tap, str):
        return []
    return [i % model.layers for i in ([tap] if isinstance(tap, int) else tap)]


def check_tap(model: LanguageModel, tap: Tap, key: str) -> None:
    """Raise UserError if the model has no such hidden state; `key` is the config key of the tap."""
    if isinstance(tap, str):
        if tap.startswith(INJECTOR) and model.injector is None:
            raise UserError(f"{key}={tap}: the model has no injector; add model/injector=chunk")
        if tap == "boundary" and model.backbone.skips < 1:
            raise UserError(f"{key}=boundary: a backbone of one block has no encoder half")
        return
    for layer in [tap] if isinstance(tap, int) else tap:
        if not -model.layers <= layer < model.layers:
            raise UserError(
                f"{key}={tap}: block {layer} does not exist, the backbone has blocks "
                f"0..{model.layers - 1}"
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
    return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
