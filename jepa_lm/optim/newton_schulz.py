"""Newton-Schulz orthogonalisation of a batch of matrices, the heart of Muon.

X <- a X + (b A + c A^2) X, A = X X^T, (a, b, c) = (3.4445, -4.7750, 2.0315), from X = G / |G|.
Five steps bring all singular values near 1 (between about 0.7 and 1.2), which is enough for Muon.
Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024).
Legend: S matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


def orthogonalise(grad: Tensor, *, steps: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalise each matrix of [S, R, C]; computed and returned in `dtype`."""
    a, b, c = COEFFICIENTS
    x = grad.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if tall else x


def orthogonalise_reference(grad: Tensor, *, steps: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalise one matrix [R, C] by the plain formula."""
    a, b, c = COEFFICIENTS
    x = grad.to(dtype)
    if x.shape[0] > x.shape[1]:
        return orthogonalise_reference(x.T, steps=steps, dtype=dtype).T
    x = x / x.norm().clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
