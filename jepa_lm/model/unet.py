"""The U-Net over blocks that every backbone here shares: early outputs are added back late.

Blocks 0..L-1; the first L//2 push their output on a stack; the j-th later block first adds
skip_weights[j] * pop(), last pushed first, while the stack lasts.
Source: submissions #832, #903, #1196, #1243, #1581.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Runs blocks with U-Net skips. A block maps (x, x0, extra_value) to the next x, all [B, T, D]."""

    def __init__(self, *, blocks: Iterable[nn.Module], dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        layers = len(self.blocks)
        self.skips = layers // 2
        self.skip_weights = nn.Parameter(torch.ones(min(self.skips, layers - self.skips), dim))

    def forward(
        self, x0: Tensor, extra_values: Mapping[int, Tensor], taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run all blocks.

        Args:
            x0: embedded input [B, T, D], also mixed into every block.
            extra_values: what a layer's attention adds to its values, by layer.
            taps: layers whose output [B, T, D] is wanted as well.

        Returns:
            The last block's output [B, T, D] and the tapped outputs by layer.
        """
        x = x0
        stack: list[Tensor] = []
        tapped: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            if i >= self.skips and stack:
                x = x + self.skip_weights[i - self.skips] * stack.pop()
            x = block(x, x0, extra_values.get(i))
            if i < self.skips:
                stack.append(x)
            if i in taps:
                tapped[i] = x
        return x, tapped
