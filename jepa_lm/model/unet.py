"""The U-Net over blocks that every backbone here shares: early outputs are added back late.

Blocks 0..L-1; the first L//2 push their output on a stack; the j-th later block first adds
skip_weights[j] * pop(), last pushed first, while the stack lasts.
Source: submissions #832, #903, #1196, #1243, #1581.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Carry(NamedTuple):
    """What travels from block to block; a pass can be cut at any block and taken up again."""

    layer: int
    """The next block to run."""
    x: Tensor
    """Its input [B, T, D], before the skip is added."""
    x0: Tensor
    """The embedded input [B, T, D]."""
    stack: tuple[Tensor, ...]
    """Outputs [B, T, D] of early blocks that wait to be added back."""
    taps: dict[int, Tensor]
    """Outputs [B, T, D] of the blocks that were asked for, so far."""

    def detach(self) -> Carry:
        """The same without gradients: what runs on from here trains only the blocks that follow."""
        stack = tuple(x.detach() for x in self.stack)
        taps = {layer: x.detach() for layer, x in self.taps.items()}
        return Carry(self.layer, self.x.detach(), self.x0.detach(), stack, taps)


class UNet(nn.Module):
    """Runs blocks with U-Net skips. A block maps (x, x0, extra_value) to the next x, all [B, T, D]."""

    def __init__(self, *, blocks: Iterable[nn.Module], dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        layers = len(self.blocks)
        self.skips = layers // 2
        self.skip_weights = nn.Parameter(torch.ones(min(self.skips, layers - self.skips), dim))

    def forward(
        self,
        carry: Carry,
        extra_values: Mapping[int, Tensor],
        *,
        until: int,
        taps: Collection[int] = (),
    ) -> Carry:
        """Run blocks `carry.layer` to `until - 1`.

        Args:
            carry: where to start; `Carry(0, x0, x0, (), {})` is the beginning.
            extra_values: what a layer's attention adds to its values, by layer.
            until: the block to stop before; the number of blocks runs them all.
            taps: layers whose output [B, T, D] is wanted as well.
        """
        x, x0, stack, tapped = carry.x, carry.x0, list(carry.stack), dict(carry.taps)
        for i in range(carry.layer, until):
            if i >= self.skips and stack:
                x = x + self.skip_weights[i - self.skips] * stack.pop()
            x = self.blocks[i](x, x0, extra_values.get(i))
            if i < self.skips:
                stack.append(x)
            if i in taps:
                tapped[i] = x
        return Carry(until, x, x0, tuple(stack), tapped)
