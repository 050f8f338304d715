"""Normalisations of latents, without parameters: [..., D] -> [..., D].

Each knows the largest standard deviation over rows that all its D dimensions can have at once: a
hinge on a normalised tensor can ask for no more.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.layers import FLOAT32_EPS, rms_norm

L2_EPS = 1e-12


class Normalisation(nn.Module):
    """Maps [..., D] to [..., D]."""

    fragile_at_zero = False
    """Whether its gradient at a zero vector is beyond all use."""

    def reachable_std(self, dim: int) -> float:
        """Largest std over rows that every dimension can reach together."""
        raise NotImplementedError


class L2(Normalisation):
    """Rows of unit length; the norm is clamped at 1e-12."""

    fragile_at_zero = True

    def reachable_std(self, dim: int) -> float:
        """Mean squares of the dims add up to 1."""
        return dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=L2_EPS)


class RMS(Normalisation):
    """x / sqrt(mean(x^2) + eps). Multiplies gradients at zero by 2900."""

    fragile_at_zero = True

    def __init__(self, *, eps: float = FLOAT32_EPS) -> None:
        super().__init__()
        self.eps = eps

    def reachable_std(self, dim: int) -> float:
        """Mean squares of the dims average to 1."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps)


class LayerNorm(Normalisation):
    """(x - mean) / sqrt(var + 1e-5) over D, no gain and no bias."""

    def reachable_std(self, dim: int) -> float:
        """Mean squares of the dims average to 1."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],))
