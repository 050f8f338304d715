"""From logits to gradients on a CPU: in place, in blocks that stay in its caches, with few passes.

The plain form is `cross_entropy._chunk`.
Legend: R rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lm.model.heads import Softcap

BLOCK_ELEMENTS = 1 << 19
"""Logits processed at a time between two products: about what the caches hold."""
SAFE_CAP = 60.0
"""Up to this cap, exp needs no subtraction of the largest logit: V exp(60) fits into float32."""


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of everything but the matrix products."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunk_in_blocks_(
    logits: Tensor,
    bias: Tensor | None,
    softcap: Softcap | None,
    targets: Tensor,
    z_loss_weight: float,
    grad_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `cross_entropy._chunk` does, but in place and in blocks that stay in a processor's caches.

    Args:
        targets: [R, 1]. grad_bias: the gradient of the bias is added here.

    Returns:
        `logits` (now gradients), nll and logsumexp.
    """
    dtype, V = precise(logits.dtype), logits.shape[1]
    block_rows = max(1, min(len(logits), BLOCK_ELEMENTS // V))
    exact = logits.dtype == dtype
    work = logits.new_empty(2 if exact else 3, block_rows, V, dtype=dtype)
    nll, lse = [], []
    for low, aims in zip(logits.split(block_rows), targets.split(block_rows), strict=True):
        z = low if exact else work[2, : len(low)].copy_(low)
        if bias is not None:
            z += bias
        losses = _logits_to_gradients_(z, softcap, aims, z_loss_weight, work[:2, : len(low)])
        nll.append(losses[0])
        lse.append(losses[1])
        if grad_bias is not None:
            grad_bias += z.sum(0)
        if not exact:
            low.copy_(z)
    return logits, torch.cat(nll), torch.cat(lse)


def _logits_to_gradients_(
    z: Tensor, softcap: Softcap | None, targets: Tensor, z_loss_weight: float, work: Tensor
) -> tuple[Tensor, Tensor]:
    """Return nll and logsumexp [R, 1] of uncapped logits z; overwrite z by N times the loss's gradient.

    Args:
        z: [R, V]. targets: [R, 1]. work: [2, R, V], overwritten.
    """
    derivative, p = work
    if softcap is None or softcap.cap > SAFE_CAP:
        return _of_any_logits(z, softcap, targets, z_loss_weight, derivative, p)
    softcap.cap_(z, derivative)
    total = torch.exp(z, out=p).sum(1, keepdim=True)
    lse = total.log()
    nll = lse - z.gather(1, targets)  # [R, 1]
    scale = (1 + 2 * z_loss_weight * lse) / total
    p.scatter_add_(1, targets, -1 / scale)
    torch.mul(p, derivative, out=z).mul_(scale)
    return nll, lse


def _of_any_logits(
    z: Tensor,
    softcap: Softcap | None,
    targets: Tensor,
    z_loss_weight: float,
    derivative: Tensor,
    p: Tensor,
) -> tuple[Tensor, Tensor]:
    """Do the same for logits whose exp could overflow float32: subtract the largest logit first."""
    if softcap is not None:
        softcap.cap_(z, derivative)
    torch.softmax(z, 1, out=p)
    # max(z) - log(max(p)) is logsumexp; the largest p never underflows.
    lse = z.amax(1, keepdim=True) - p.amax(1, keepdim=True).log_()
    nll = lse - z.gather(1, targets)  # [R, 1]
    if z_loss_weight:
        p *= 1 + 2 * z_loss_weight * lse
    p.scatter_add_(1, targets, torch.full_like(lse, -1.0))
    if softcap is None:
        z.copy_(p)
    else:
        torch.mul(p, derivative, out=z)
    return nll, lse
