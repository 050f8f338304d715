"""The U-Net over blocks that every backbone here shares: early outputs are added back late.

Blocks 0..L-1; the first L//2 push their output on a stack; the j-th later block first adds
skip_weights[j] * pop(), last pushed first, while the stack lasts.
Source: submissions #832, #903, #1196, #1243, #1581.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from jepa_lm.utils.errors import UserError


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


RunBlock: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, x, x0) -> the next x: how a pass runs its blocks, when not as usual."""


class UNet(nn.Module):
    """Runs blocks with U-Net skips.

    A block maps (x, x0, extra_value) to the next x, all [B, T, D]. Its `tail` takes a count as well and
    returns the last positions alone. A recurrent one has `stream`: (x, x0, state) to (x, state).
    """

    recurrent = False
    """Whether the past fits into a state, so that a text can be read piece by piece."""
    takes_values = True
    """Whether `extra_value` means something to the blocks."""

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
        run: RunBlock | None = None,
    ) -> Carry:
        """Run blocks `carry.layer` to `until - 1`.

        Args:
            carry: where to start; `Carry(0, x0, x0, (), {})` is the beginning.
            extra_values: what a layer's attention adds to its values, by layer.
            until: the block to stop before; the number of blocks runs them all.
            taps: layers whose output [B, T, D] is wanted as well.
            run: runs a block in another way than by calling it.
        """
        x, x0, stack, tapped = carry.x, carry.x0, list(carry.stack), dict(carry.taps)
        for i in range(carry.layer, until):
            if i >= self.skips and stack:
                x = x + self.skip_weights[i - self.skips] * stack.pop()
            x = self.blocks[i](x, x0, extra_values.get(i)) if run is None else run(i, x, x0)
            if i < self.skips:
                stack.append(x)
            if i in taps:
                tapped[i] = x
        return Carry(until, x, x0, tuple(stack), tapped)

    def tail(self, carry: Carry, extra_values: Mapping[int, Tensor], count: int) -> Tensor:
        """Finish a pass that stands before the last block, for the last `count` positions alone."""
        last = len(self.blocks) - 1
        assert carry.layer == last

        def run(i: int, x: Tensor, x0: Tensor) -> Tensor:
            return self.blocks[i].tail(x, x0, extra_values.get(i), count)  # type: ignore[operator]

        return self(carry, extra_values, until=last + 1, run=run).x

    def stream(self, x0: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """Read on: x0 [B, T, D] and each block's state before it -> the output and the states after."""
        after: list[Any] = []

        def run(i: int, x: Tensor, x0: Tensor) -> Tensor:
            x, state = self.blocks[i].stream(x, x0, states[i])  # type: ignore[operator]
            after.append(state)
            return x

        done = self(Carry(0, x0, x0, (), {}), {}, until=len(self.blocks), run=run)
        return done.x, after

    def use_kernel(self, kernel: str) -> None:
        """Choose between implementations of the blocks, where there are several."""
        raise UserError(
            f"model.kernel={kernel}: this backbone has one implementation; leave it out"
        )
