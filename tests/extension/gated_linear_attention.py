"""Gated linear attention: a recurrence without a softmax, whose state decays by a gate for each head.

    S_t = a_t S_{t-1} + k_t v_t',  y_t = S_t' q_t

in its parallel form, y_t = sum_{s <= t} (a_{s+1} ... a_t) (q_t . k_s) v_s.
Source: Yang et al., "Gated linear attention transformers" (2023), with a scalar gate.
Legend: B batch, T positions, D model width, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.layers import SquaredReluMLP, rms_norm
from jepa_lm.model.unet import UNet


class Block(nn.Module):
    """Gated linear attention and an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        self.gate = nn.Linear(dim, heads)
        self.mlp = SquaredReluMLP(dim=dim, hidden=2 * dim, negative_slope=0.0)

    def forward(self, x: Tensor, x0: Tensor, extra_value: Tensor | None) -> Tensor:
        """x, x0 [B, T, D] -> [B, T, D]."""
        return self.tail(x, x0, extra_value, None)

    def tail(self, x: Tensor, x0: Tensor, extra_value: Tensor | None, count: int | None) -> Tensor:
        """Return outputs of the last `count` positions, [B, count, D]."""
        first = 0 if count is None else x.shape[1] - count
        normed = rms_norm(x)
        q, k, v = (
            part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, d]
            for part in (self.query, self.key, self.value)
        )
        log_decay = F.logsigmoid(self.gate(normed)).transpose(1, 2).float() / 16  # [B, H, T]
        since_start = log_decay.cumsum(-1)
        apart = since_start[..., first:, None] - since_start[..., None, :]  # [B, H, T', T]
        positions = torch.arange(x.shape[1], device=x.device)
        future = positions[None, :] > positions[first:, None]
        weight = apart.masked_fill(future, -torch.inf).exp().to(q.dtype)
        read = (weight * (q[..., first:, :] @ k.transpose(-1, -2))) @ v  # [B, H, T', d]
        x = x[:, first:] + self.out(rms_norm(read).transpose(1, 2).flatten(2))
        return x + self.mlp(rms_norm(x))


class GatedLinearAttention(UNet):
    """A U-Net of these blocks.

    Args:
        dim: width D. layers: depth. heads: H, divides D.
    """

    takes_values = False

    def __init__(self, *, dim: int, layers: int, heads: int) -> None:
        super().__init__(blocks=(Block(dim, heads) for _ in range(layers)), dim=dim)
