"""The U-Net that all backbones share: outputs of early blocks are added to inputs of late ones.

Blocks 0..L//2-1 of L push their outputs on a stack. The j-th later block first adds
skip_weights[j] * pop() to its input, last in first out, until the stack is empty.
Source: submissions #832, #903, #1196, #1243, #1581.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from jepa_lm.model.dropout import Dropout
from jepa_lm.utils.errors import UserError


class Carry(NamedTuple):
    """State of a pass between two blocks; a pass can be cut at any block and resumed."""

    layer: int
    """The next block to run."""
    x: Tensor
    """Input of that block [B, T, D], before the skip is added."""
    x0: Tensor
    """The embedded input [B, T, D]."""
    stack: tuple[Tensor, ...]
    """Outputs [B, T, D] of early blocks that are still to be added."""
    taps: dict[int, Tensor]
    """Outputs [B, T, D] of the requested blocks so far."""
    dropout: Dropout | None = None
    """What the blocks drop."""

    def detach(self) -> Carry:
        """Return a copy without gradients: a loss after it trains only the blocks that follow."""
        stack = tuple(x.detach() for x in self.stack)
        taps = {layer: x.detach() for layer, x in self.taps.items()}
        return Carry(self.layer, self.x.detach(), self.x0.detach(), stack, taps, self.dropout)


RunBlock: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, x, x0) -> the next x: replaces the usual call of a block."""


class UNet(nn.Module):
    """Blocks with U-Net skips.

    A block maps (x, x0, extra_value) to the next x, all [B, T, D]; for dropout it also takes `dropout`. Its
    `tail` also takes a count and returns only the last positions. A recurrent block has `stream`:
    (x, x0, state) to (x, state).
    """

    recurrent = False
    """True if the past fits into a state, so that a text can be read piece by piece."""
    takes_values = True
    """True if the blocks use `extra_value`."""

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
            extra_values: additions to the attention values, by layer.
            until: the block to stop before; the number of blocks runs them all.
            taps: layers whose output [B, T, D] is returned as well.
            run: replaces the usual call of a block.
        """
        x, x0, stack, tapped = carry.x, carry.x0, list(carry.stack), dict(carry.taps)
        for i in range(carry.layer, until):
            if i >= self.skips and stack:
                x = x + self.skip_weights[i - self.skips].to(x.dtype) * stack.pop()
            if run is not None:
                x = run(i, x, x0)
            elif carry.dropout is None:
                x = self.blocks[i](x, x0, extra_values.get(i))
            else:
                dropout = carry.dropout.of_block(i)
                x = self.blocks[i](x, x0, extra_values.get(i), dropout=dropout)
            if i < self.skips:
                stack.append(x)
            if i in taps:
                tapped[i] = x
        return Carry(until, x, x0, tuple(stack), tapped, carry.dropout)

    def tail(self, carry: Carry, extra_values: Mapping[int, Tensor], count: int) -> Tensor:
        """Finish a pass that has reached the last block, for the last `count` positions: [B, count, D]."""
        last = len(self.blocks) - 1
        assert carry.layer == last

        def run(i: int, x: Tensor, x0: Tensor) -> Tensor:
            return self.blocks[i].tail(x, x0, extra_values.get(i), count)  # type: ignore[operator]

        return self(carry, extra_values, until=last + 1, run=run).x

    def stream(self, x0: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """Continue reading: x0 [B, T, D] and the states of all blocks -> the output and the new states."""
        after: list[Any] = []

        def run(i: int, x: Tensor, x0: Tensor) -> Tensor:
            x, state = self.blocks[i].stream(x, x0, states[i])  # type: ignore[operator]
            after.append(state)
            return x

        done = self(Carry(0, x0, x0, (), {}), {}, until=len(self.blocks), run=run)
        return done.x, after

    def keep_tables(self, positions: int, device: torch.device) -> None:
        """Make what blocks need for sequences of this length, so that a compiled pass only reads it."""

    def use_kernel(self, kernel: str) -> None:
        """Choose between implementations of the blocks, if there are several.

        Raises:
            UserError: the backbone has only one.
        """
        raise UserError(
            f"model.kernel={kernel}: this backbone has only one implementation; omit the key"
        )
