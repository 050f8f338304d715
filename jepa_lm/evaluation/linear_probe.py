"""Linear probes of hidden states: what a ridge regression reads out of them.

    argmin_W |H W - Y|^2 + ridge |W|^2     with one-hot Y, solved in float64 on the CPU

Legend: N hidden states, D width, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-3
"""Ridge strength, relative to the mean of the diagonal of H^T H."""


class LinearProbe:
    """A probe that is fitted batch by batch.

    Args:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._gram: Tensor | None = None
        self._moments: Tensor | None = None

    def add(self, hidden: Tensor, classes: Tensor) -> None:
        """Take hidden states [N, D] and their classes [N]."""
        h = with_bias(hidden)
        if self._gram is None or self._moments is None:
            self._gram = h.new_zeros(h.shape[1], h.shape[1])
            self._moments = h.new_zeros(self.classes, h.shape[1])
        self._gram += h.T @ h
        self._moments.index_add_(0, classes.cpu(), h)

    def weights(self) -> Tensor:
        """Return W [D + 1, C], fitted to what was added; the last row is the bias."""
        assert self._gram is not None
        assert self._moments is not None
        strength = RIDGE * self._gram.diagonal().mean()
        ridge = strength * torch.eye(len(self._gram), dtype=self._gram.dtype)
        return torch.linalg.solve(self._gram + ridge, self._moments.T)


def with_bias(hidden: Tensor) -> Tensor:
    """Append a column of ones: [N, D] -> [N, D + 1], float64 on the CPU."""
    return F.pad(hidden.double().cpu(), (0, 1), value=1.0)
