"""GPTQ: quantize a matrix to integers that preserve its outputs rather than its entries.

For y = W x it reduces the squared error of y over calibration inputs, tr((W - Q) H (W - Q)^T) with
H = sum x x^T. Columns are rounded one after the other; the columns not yet rounded compensate for the error
of each, using the Cholesky factor of H^-1.
Source: Frantar et al., "GPTQ" (2023).
Legend: R rows, C columns (inputs), g columns of a group.
Deviation: scales are those of plain rounding, fixed before the first column, so that both methods can be
compared and columns can be processed in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lm.quantization.formats import Integer

MORE = (1, 10, 100)
"""Multiples of the damping to try, in order, until H can be factored."""


class NotPositiveDefiniteError(ValueError):
    """The second moments of the inputs have no Cholesky factor in floating-point arithmetic."""


def gptq(
    weight: Tensor,
    hessian: Tensor,
    kind: Integer,
    *,
    damping: float,
    act_order: bool,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """Quantize a matrix to integers and scales.

    Args:
        weight: W [R, C]. hessian: H [C, C], symmetric.
        damping: share of the mean of H's diagonal that is added to the diagonal: inputs that never occur,
            or always occur together, make H singular.
        act_order: round the columns with the largest inputs first, while the others can still compensate.
        block: number of columns whose errors are propagated at once; it changes speed, not results.

    Returns:
        q [R, C] as float with integer values, and scales [R, K, 1] as in `Integer.quantize`.

    Raises:
        NotPositiveDefiniteError: H is not positive definite, even with more damping.
    """
    R, C = weight.shape
    _, scale = kind.quantize(weight)
    spread = scale.float().expand(-1, -1, kind.group or C).flatten(1)[:, :C].double()
    left, H = weight.double().clone(), hessian.double().clone()
    order = torch.arange(C, device=weight.device)
    if act_order:
        order = torch.argsort(H.diagonal(), descending=True, stable=True)
    left, spread, H = left[:, order], spread[:, order], H[order][:, order]
    upper = _factor(H, damping)
    q = torch.zeros_like(left)
    for start in range(0, C, block):
        end = min(start + block, C)
        errors = torch.zeros(R, end - start, dtype=left.dtype, device=left.device)
        for j in range(start, end):
            exact = left[:, j]
            q[:, j] = (exact / spread[:, j]).round().clamp(-kind.limit, kind.limit)
            error = (exact - q[:, j] * spread[:, j]) / upper[j, j]
            left[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    back = torch.argsort(order)
    return q[:, back].float(), scale


def output_error(weight: Tensor, stored: Tensor, hessian: Tensor) -> float:
    """Return tr((W - Q) H (W - Q)^T), the squared error of the outputs over the calibration inputs."""
    difference = (weight - stored).double()
    return ((difference @ hessian.double()) * difference).sum().item()


def _factor(H: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of (H + damping)^-1.

    Raises:
        NotPositiveDefiniteError: every multiple of the damping in `MORE` fails.
    """
    mean = H.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for times in MORE:
        damped = H + times * damping * mean * torch.eye(len(H), dtype=H.dtype, device=H.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed and torch.isfinite(upper).all():
            return upper
    raise NotPositiveDefiniteError(f"not positive definite, even with {MORE[-1]} times the damping")
