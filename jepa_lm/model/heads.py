"""From the final hidden state to logits: tied and untied heads, soft caps.

Legend: B batch, T positions, D model width, V vocabulary, E width of the token table.
Source: submissions #832, #1196, #1243, #1581 (tied, tanh) and #903 (the four tie modes, polynomial).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UntiedHead(nn.Module):
    """A Linear(D, V) of its own (tie mode 0 of #903).

    Args:
        zero_init: start at zero instead of the framework's default.
    """

    def __init__(self, *, dim: int, vocab_size: int, zero_init: bool) -> None:
        super().__init__()
        self.out = nn.Linear(dim, vocab_size, bias=False)
        self.out.parameter_role = "head"  # type: ignore[assignment]
        if zero_init:
            nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """hidden [B, T, D] -> [B, T, V]; the token table is not used."""
        return self.out(hidden)


class TiedHead(nn.Module):
    """The token table read backwards, after Linear D -> E when the table is factored (mode 1).

    Args:
        dim: D. vocab_size: V. factor_dim: E of a factored table, None when the table has width D.
        correction: add a learned [V, E] correction, start 0, to the table (mode 2).
        gelu: exact GELU after Linear D -> E (mode 3).
    """

    def __init__(
        self, *, dim: int, vocab_size: int, factor_dim: int | None, correction: bool, gelu: bool
    ) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, factor_dim, bias=False) if factor_dim else None
        self.gelu = gelu
        shape = (vocab_size, factor_dim or dim)
        self.correction = nn.Parameter(torch.zeros(shape)) if correction else None

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """hidden [B, T, D], table [V, E] -> [B, T, V]."""
        if self.reduce is not None:
            hidden = self.reduce(hidden)
        if self.gelu:
            hidden = F.gelu(hidden)
        if self.correction is not None:
            table = table + self.correction
        return F.linear(hidden, table)


class TanhSoftcap(nn.Module):
    """cap * tanh(z / cap), in float32."""

    def __init__(self, *, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, z: Tensor) -> Tensor:
        return self.cap * torch.tanh(z.float() / self.cap)


class PolynomialSoftcap(nn.Module):
    """cap * clamp(u (1 - u^2/3 + u^4/15), -1, 1), u = clamp(z / cap, -2, 2), in float32 (#903)."""

    def __init__(self, *, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, z: Tensor) -> Tensor:
        u = (z.float() / self.cap).clamp(-2, 2)
        squared = u * u
        return self.cap * (u * (1 - squared / 3 + squared * squared / 15)).clamp(-1, 1)
