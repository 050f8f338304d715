"""Pooling of hidden states into latents: [B, T, D] -> [B, N, D].

Legend: B batch, T positions, N latents, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from jepa_lm.objective.views import split_at
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, checked


class Pooling(nn.Module):
    """Map from [B, T, D] to [B, N, D]."""

    def check(self, seq_len: int, key: str) -> None:
        """Raise UserError if sequences of this length do not fit; `key` is the config key of the pooling."""

    def latents(self, seq_len: int) -> int:
        """Return N, the number of latents."""
        raise NotImplementedError


class _Chunks(Pooling):
    """Chunks of `size` positions, which must divide the sequence."""

    @checked
    def __init__(self, *, size: Count) -> None:
        super().__init__()
        self.size = size

    def check(self, seq_len: int, key: str) -> None:
        if seq_len % self.size:
            raise UserError(f"{key}.size={self.size}: must divide data.seq_len={seq_len}")

    def latents(self, seq_len: int) -> int:
        return seq_len // self.size


class ChunkMean(_Chunks):
    """Mean of each chunk."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T / size, D]."""
        return x.unflatten(1, (-1, self.size)).mean(2)  # over [B, N, size, D]


class ChunkLast(_Chunks):
    """Last position of each chunk, which in a causal model has seen the whole chunk."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T / size, D]."""
        return x[:, self.size - 1 :: self.size]


class SequenceMean(Pooling):
    """Mean of all positions."""

    def latents(self, seq_len: int) -> int:
        return 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, 1, D]."""
        return x.mean(1, keepdim=True)


class PrefixEnd(Pooling):
    """Last position of the prefix, which is a `fraction` of the positions, rounded down."""

    def __init__(self, *, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def check(self, seq_len: int, key: str) -> None:
        if not 0 < split_at(seq_len, self.fraction) <= seq_len:
            raise UserError(
                f"{key}.fraction={self.fraction}: the prefix does not end inside data.seq_len={seq_len}"
            )

    def latents(self, seq_len: int) -> int:
        return 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, 1, D]."""
        end = split_at(x.shape[1], self.fraction)
        return x[:, end - 1 : end]
