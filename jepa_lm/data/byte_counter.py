"""Count the bytes of text that each token represents, on the model's device. Legend: B windows, T targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lm.data.tokenizers import TokenBytes


class ByteCounter(nn.Module):
    """`TokenBytes` as tensors that follow the model to its device and stay out of checkpoints.

    Args:
        scale: bytes of text per byte of the table; not 1 if the tokenizer changes the text (it normalises
            spaces, or meets an unknown character).
    """

    base: Tensor
    leading_space: Tensor
    boundary: Tensor

    def __init__(self, table: TokenBytes, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        for name in ("base", "leading_space", "boundary"):
            self.register_buffer(name, torch.from_numpy(getattr(table, name)), persistent=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the bytes of each target, int64 (float64 if scaled); `inputs` precede them; all [B, T]."""
        space = self.leading_space[targets] & ~self.boundary[inputs]
        counted = self.base[targets] + space
        return counted if self.scale == 1 else counted.double() * self.scale
