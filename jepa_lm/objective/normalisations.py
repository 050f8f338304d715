"""Normalisations of latents, without parameters: [..., D] -> [..., D].

Each knows the largest standard deviation over rows that all its D dimensions can have at once, which
limits the gamma of a hinge on a normalised tensor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.layers import FLOAT32_EPS, rms_norm

L2_EPS = 1e-12


class Normalisation(nn.Module):
    """Map from [..., D] to [..., D]."""

    fragile_at_zero = False
    """True if its gradient at a zero vector is too large to be useful."""

    def reachable_std(self, dim: int) -> float:
        """Return the largest std over rows that all dimensions can reach together."""
        raise NotImplementedError


class L2(Normalisation):
    """L2 normalisation to unit length; the norm is clamped at 1e-12."""

    fragile_at_zero = True

    def reachable_std(self, dim: int) -> float:
        """Return D^-0.5: the mean squares of the dims sum to 1."""
        return dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=L2_EPS)


class RMS(Normalisation):
    """RMS normalisation x / sqrt(mean(x^2) + eps). Multiplies gradients at zero by 2900."""

    fragile_at_zero = True

    def __init__(self, *, eps: float = FLOAT32_EPS) -> None:
        super().__init__()
        self.eps = eps

    def reachable_std(self, dim: int) -> float:
        """Return 1: the mean squares of the dims average to 1."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps)


class LayerNorm(Normalisation):
    """Layer norm (x - mean) / sqrt(var + 1e-5) over D, without gain or bias."""

    def reachable_std(self, dim: int) -> float:
        """Return 1: the mean squares of the dims average to 1."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],))
