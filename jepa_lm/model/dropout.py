"""Dropout of what the blocks add to the residual stream, in the training pass of the cross entropy.

What is kept is drawn before the pass and passed in, so that it depends neither on other passes nor on a
compiler, and scoring needs no switch: without draws nothing is dropped. Source: 1207.0580.
Legend: L blocks, B batch, T positions, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BRANCHES = 2
"""Parts of a block that add to the residual stream: the mixer, and the MLP."""


class Dropout(NamedTuple):
    """What one pass drops."""

    kept: Tensor
    """[L, 2, B, T, D] for a backbone, [2, B, T, D] for one block, bool."""
    rate: float
    """Share of the values that are dropped."""

    def of_block(self, layer: int) -> Dropout:
        """Return what one block drops."""
        return Dropout(self.kept[layer], self.rate)

    def __call__(self, branch: int, x: Tensor) -> Tensor:
        """Return the output x [B, T, D] of a branch without what is dropped, with the same mean."""
        kept = self.kept[branch, :, -x.shape[1] :]
        return x * kept.to(x.dtype) * (1 / (1 - self.rate))


def draw_dropout(
    rate: float, layers: int, shape: tuple[int, int, int], seed: int, device: torch.device
) -> Tensor:
    """Draw what a pass over [B, T, D] keeps, on its device: [L, 2, B, T, D], bool."""
    generator = torch.Generator(device).manual_seed(seed)
    kept = torch.empty((layers, BRANCHES, *shape), dtype=torch.bool, device=device)
    for block in kept:  # one at a time: the random numbers take four times the memory of the answer
        block.copy_(torch.rand(block.shape, generator=generator, device=device) >= rate)
    return kept
