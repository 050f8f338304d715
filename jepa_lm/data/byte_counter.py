"""How many bytes of text each token stands for, on the device of the model. Legend: B windows, T targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lm.data.tokenizers import TokenBytes


class ByteCounter(nn.Module):
    """`TokenBytes` as tensors that follow the model to its device and stay out of checkpoints.

    Args:
        scale: bytes of text for each byte of the table; another number than 1 where the tokenizer does not
            keep the text (a normalised space, an unknown character).
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
        """Bytes of each target, int64 (scaled: float64); inputs are the tokens before them; all [B, T]."""
        space = self.leading_space[targets] & ~self.boundary[inputs]
        counted = self.base[targets] + space
        return counted if self.scale == 1 else counted.double() * self.scale
