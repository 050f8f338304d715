"""Output heads (tied and untied) and softcaps: from the final hidden state to logits.

Legend: B batch, T positions, D model width, V vocabulary, E width of the token table.
Source: submissions #832, #1196, #1243, #1581 (tied, tanh) and #903 (the four tie modes, polynomial).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.utils.kinds import Count, Positive, checked


class Head(nn.Module, ABC):
    """features(hidden) @ weight(table)^T. Training uses the factors separately (`cross_entropy.py`)."""

    @abstractmethod
    def features(self, hidden: Tensor, *, frozen: bool = False) -> Tensor:
        """hidden [B, T, D] -> input of the last matrix product, [B, T, E].

        Args:
            frozen: no gradient to the head's own parameters.
        """

    @abstractmethod
    def weight(self, table: Tensor) -> Tensor:
        """Return the matrix [V, E] of the last product, given the token table [V, E]."""

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """hidden [B, T, D], table [V, E] -> [B, T, V]."""
        return F.linear(self.features(hidden), self.weight(table))


class Readout(NamedTuple):
    """Factors of the logits softcap(features weight^T + bias), so that no loss has to hold all of them."""

    features: Tensor
    """[N, E]."""
    weight: Tensor
    """[V, E]."""
    bias: Tensor | None
    """[V]."""
    softcap: Softcap | None


class UntiedHead(Head):
    """A separate Linear(D, V) (tie mode 0 of #903).

    Args:
        zero_init: start at zero instead of PyTorch's default initialisation.
    """

    @checked
    def __init__(self, *, dim: Count, vocab_size: Count, zero_init: bool) -> None:
        super().__init__()
        self.out = nn.Linear(dim, vocab_size, bias=False)
        self.out.parameter_role = "head"  # type: ignore[assignment]
        if zero_init:
            nn.init.zeros_(self.out.weight)

    def features(self, hidden: Tensor, *, frozen: bool = False) -> Tensor:
        return hidden

    def weight(self, table: Tensor) -> Tensor:
        """Return the head's own matrix; the token table is not used."""
        return self.out.weight

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """Compute the product by calling the layer, where GPTQ hooks in to record the inputs of a matrix."""
        return self.out(hidden)


class TiedHead(Head):
    """The transposed token table, after Linear D -> E when the table is factored (mode 1).

    Args:
        dim: D. vocab_size: V. factor_dim: E of a factored table, or None for a table of width D.
        correction: add a learned correction [V, E], which starts at zero, to the table (mode 2).
        gelu: exact GELU after Linear D -> E (mode 3).
    """

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        vocab_size: Count,
        factor_dim: Count | None,
        correction: bool,
        gelu: bool,
    ) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, factor_dim, bias=False) if factor_dim else None
        self.gelu = gelu
        shape = (vocab_size, factor_dim or dim)
        self.correction = nn.Parameter(torch.zeros(shape)) if correction else None

    def features(self, hidden: Tensor, *, frozen: bool = False) -> Tensor:
        if self.reduce is not None and frozen:
            hidden = F.linear(hidden, self.reduce.weight.detach())
        elif self.reduce is not None:
            hidden = self.reduce(hidden)
        return F.gelu(hidden) if self.gelu else hidden

    def weight(self, table: Tensor) -> Tensor:
        return table if self.correction is None else table + self.correction


class Softcap(nn.Module, ABC):
    """A smooth bound on logits.

    Args:
        cap: bound on the absolute value.
    """

    @checked
    def __init__(self, *, cap: Positive) -> None:
        super().__init__()
        self.cap = cap

    @abstractmethod
    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return `forward(z)` and its derivative d capped / dz, without changing z."""

    @abstractmethod
    def cap_(self, z: Tensor, derivative: Tensor) -> None:
        """Replace z by `forward(z)` in few passes over memory, and compute the derivative.

        Args:
            z: float32 or float64. derivative: of the same shape; receives d capped / dz.
        """


class TanhSoftcap(Softcap):
    """cap * tanh(z / cap), in float32."""

    def forward(self, z: Tensor) -> Tensor:
        return self.cap * torch.tanh(z.float() / self.cap)

    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        bounded = torch.tanh(z / self.cap)
        return self.cap * bounded, 1 - bounded * bounded

    def cap_(self, z: Tensor, derivative: Tensor) -> None:
        """Use tanh(x) = 2 sigmoid(2 x) - 1, because tanh itself takes five times as long on a CPU."""
        one = z.new_ones(())
        z.mul_(2 / self.cap).sigmoid_()
        torch.add(-self.cap * one, z, alpha=2 * self.cap, out=z)
        torch.addcmul(one, z, z, value=-1 / self.cap**2, out=derivative)


class PolynomialSoftcap(Softcap):
    """cap * clamp(u (1 - u^2/3 + u^4/15), -1, 1), u = clamp(z / cap, -2, 2), in float32 (#903)."""

    def forward(self, z: Tensor) -> Tensor:
        u = (z.float() / self.cap).clamp(-2, 2)
        squared = u * u
        return self.cap * (u * (1 - squared / 3 + squared * squared / 15)).clamp(-1, 1)

    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u = (z / self.cap).clamp(-2, 2)
        s = u * u
        p = u * (1 - s / 3 + s * s / 15)
        slope = (1 + s * (s - 3) / 3) * (p.abs() < 1)
        return self.cap * p.clamp(-1, 1), slope

    def cap_(self, z: Tensor, derivative: Tensor) -> None:
        """Use p = u + u s (s - 5) / 15 and p' = 1 + s (s - 3) / 3, s = u^2; p' = 0 where |p| > 1.

        p is increasing and p(2) > 1, so p' is 0 wherever u is clamped.
        """
        z.mul_(1 / self.cap).clamp_(-2, 2)
        squared = z * z
        spare = squared - 3
        torch.addcmul(z.new_ones(()), squared, spare, value=1 / 3, out=derivative)
        z.addcmul_(z, spare.sub_(2).mul_(squared), value=1 / 15)
        torch.ops.aten.hardtanh_backward.grad_input(derivative, z, -1, 1, grad_input=derivative)
        z.clamp_(-1, 1).mul_(self.cap)
