"""The plainest fast transformer with AdamW that PyTorch allows: the yardstick of `peers`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal attention with grouped heads, rotary positions and normalised queries and keys."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        self.qkv = nn.Linear(dim, dim + 2 * kv_heads * self.width, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, D]; cos, sin [T, d/2] -> [B, T, D]."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.width).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = (self._rotated(F.rms_norm(x, (self.width,)), cos, sin) for x in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(B, T, D))

    @staticmethod
    def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class PlainTransformer(nn.Module):
    """Pre-norm blocks of attention and a squared-relu MLP, tied table, RMS norms without gains."""

    def __init__(
        self, *, vocab: int, dim: int, layers: int, heads: int, kv_heads: int, hidden: int, T: int
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, dim)
        self.attention = nn.ModuleList(Attention(dim, heads, kv_heads) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(dim, hidden, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(hidden, dim, bias=False) for _ in range(layers))
        width = dim // heads
        angles = torch.outer(torch.arange(T), 10000.0 ** -(torch.arange(0, width, 2) / width))
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of targets [B, T] after ids [B, T]."""
        x = self.table(ids)
        for attention, up, down in zip(self.attention, self.up, self.down, strict=True):
            x = x + attention(F.rms_norm(x, x.shape[-1:]), self.cos, self.sin)
            x = x + down(F.relu(up(F.rms_norm(x, x.shape[-1:]))).square())
        logits = F.linear(F.rms_norm(x, x.shape[-1:]), self.table.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
