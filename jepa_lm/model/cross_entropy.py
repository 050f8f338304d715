"""Cross entropy and z-loss of a head, with a chunked version for training that never holds all logits.

    z = softcap(features table^T + bias)      nll = logsumexp(z) - z[target]
    loss = mean(nll) + z_loss_weight mean(logsumexp(z)^2)

The gradient of a row of logits depends on that row alone, so one chunk of rows goes through all three
matrix products at once: N d loss / d z = (1 + 2 z_loss_weight logsumexp(z)) softmax(z) - onehot(target),
times the slope of the cap. The backward pass only scales the gradients that the forward pass computed.
Matrix products run in float16 or bfloat16 where autocast would use them; everything else is float32,
including the sum of the table's gradient over chunks.

Deviation from autograd: no second derivative.
Legend: B batch, T positions, N = B T rows, R rows of a chunk, V vocabulary, E width of the token table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepa_lm.model.cross_entropy_kernels import chunk_in_blocks_, precise
from jepa_lm.model.heads import Softcap
from jepa_lm.utils.precision import autocast_dtype

CHUNK_ELEMENTS = {"cpu": 1 << 23}
"""Logits per matrix product, by device; larger products are faster up to a point."""
CHUNK_ELEMENTS_ELSEWHERE = 1 << 26


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each target in nats: logits [B, T, V], targets [B, T] -> [B, T] float32."""
    flat = logits.float().flatten(0, 1)  # [B T, V]
    return F.cross_entropy(flat, targets.flatten(), reduction="none").view(targets.shape)


def mean_nll(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean cross entropy in nats, of targets [B, T] with these weights; None means 1."""
    nll = token_nll(logits, targets)
    return nll.mean() if weights is None else (weights * nll).mean()


def z_loss(logits: Tensor) -> Tensor:
    """Return mean(logsumexp(logits)^2) in float32: keeps the normaliser near 1 (training only)."""
    return logits.float().logsumexp(-1).square().mean()


class CrossEntropy(NamedTuple):
    """Losses averaged over rows."""

    loss: Tensor
    """ce + z_loss_weight * z; the only one with a gradient."""
    ce: Tensor
    """Mean negative log-likelihood of the targets, in nats."""
    z: Tensor
    """mean(logsumexp^2)."""


def cross_entropy_reference(
    features: Tensor,
    table: Tensor,
    bias: Tensor | None,
    softcap: Softcap | None,
    targets: Tensor,
    *,
    z_loss_weight: float,
    weights: Tensor | None = None,
) -> CrossEntropy:
    """Compute the loss by its formula, with all logits at once; arguments as in `chunked_cross_entropy`."""
    logits = F.linear(features, table)
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap(logits)
    if weights is None:
        ce, z = token_nll(logits[None], targets[None]).mean(), z_loss(logits)
    else:
        ce = (weights * token_nll(logits[None], targets[None])[0]).mean()
        z = (weights * logits.float().logsumexp(-1).square()).mean()
    return CrossEntropy(ce + z_loss_weight * z, ce.detach(), z.detach())


def chunked_cross_entropy(
    features: Tensor,
    table: Tensor,
    bias: Tensor | None,
    softcap: Softcap | None,
    targets: Tensor,
    *,
    z_loss_weight: float,
    weights: Tensor | None = None,
    chunk_rows: int | None = None,
) -> CrossEntropy:
    """Compute the loss with at most R V logits in memory at a time, without syncing with the host.

    Float64 stays float64. Never slower than the reference, so small sizes use it as well.

    Args:
        features: [N, E]. table: [V, E]. bias: [V], before the softcap.
        targets: [N] int64, 0 to V - 1.
        weights: of the rows [N], in means over all N; None means 1. They get no gradient.
        chunk_rows: R; None chooses it for the device.
    """
    at_once = CHUNK_ELEMENTS.get(features.device.type, CHUNK_ELEMENTS_ELSEWHERE)
    rows = chunk_rows or max(1, at_once // len(table))
    inputs = (features, table, bias, softcap, targets, weights, z_loss_weight, rows)
    if torch.is_grad_enabled():
        return CrossEntropy(*_ChunkedCrossEntropy.apply(*inputs))
    ce, z, _ = _sweep(*inputs, wanted=(False, False, False))
    return CrossEntropy(ce + z_loss_weight * z, ce, z)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        table: Tensor,
        bias: Tensor | None,
        softcap: Softcap | None,
        targets: Tensor,
        weights: Tensor | None,
        z_loss_weight: float,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (features, table, bias, softcap, targets, weights, z_loss_weight, chunk_rows)
        ce, z, gradients = _sweep(*inputs, wanted=ctx.needs_input_grad[:3])
        ctx.rows = len(features)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(ce, z)
        return ce + z_loss_weight * z, ce, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # Divide by N after the products: before them, the gradient could underflow in float16.
        scale = upstream / ctx.rows
        gradients = (None if g is None else g * scale for g in ctx.saved_tensors)
        return (*gradients, *[None] * 5)


def _sweep(
    features: Tensor,
    table: Tensor,
    bias: Tensor | None,
    softcap: Softcap | None,
    targets: Tensor,
    weights: Tensor | None,
    z_loss_weight: float,
    chunk_rows: int,
    *,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Return mean nll, mean logsumexp^2, and N times the wanted gradients of features, table and bias."""
    dtype = product_dtype(features)
    x, weight = features.detach().to(dtype), table.detach().to(dtype)
    exact = precise(dtype)
    grad_features = []
    grad_table = torch.zeros_like(weight, dtype=exact) if wanted[1] else None
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=exact)
    nll, lse = [], []
    chunk = chunk_in_blocks_ if weights is None and _in_place(x) else _chunk
    shares = None if weights is None else weights[:, None].to(exact).split(chunk_rows)
    pieces = zip(x.split(chunk_rows), targets[:, None].split(chunk_rows), strict=True)
    for i, (rows, aims) in enumerate(pieces):
        # Fresh memory for each chunk: inductor mixes up chunks that share a buffer (torch 2.13).
        given = (rows @ weight.T, bias, softcap, aims, z_loss_weight, grad_bias)
        d, *losses = chunk(*given) if shares is None else _chunk(*given, shares[i])
        nll.append(losses[0])
        lse.append(losses[1])
        if wanted[0]:
            grad_features.append((d @ weight).to(features.dtype))
        if grad_table is not None and dtype == exact:
            grad_table.addmm_(d.T, rows)
        elif grad_table is not None:
            grad_table += d.T @ rows
    gradients = (
        torch.cat(grad_features) if wanted[0] else None,
        grad_table,
        grad_bias if wanted[2] else None,
    )
    nll_of, squared = torch.cat(nll), torch.cat(lse).square()
    if weights is not None:
        nll_of, squared = weights[:, None] * nll_of, weights[:, None] * squared
    return nll_of.mean(), squared.mean(), gradients


def _in_place(x: Tensor) -> bool:
    """Return whether a chunk is processed in place: on a CPU, if no compiler makes its own blocks."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _chunk(
    logits: Tensor,
    bias: Tensor | None,
    softcap: Softcap | None,
    targets: Tensor,
    z_loss_weight: float,
    grad_bias: Tensor | None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return N times the gradient of products [R, V], nll and logsumexp [R, 1]; changes only `grad_bias`.

    A compiler fuses this into two passes over the logits, and on a GPU its few large operations are faster
    than the many blocks of `cross_entropy_kernels.chunk_in_blocks_`, which does the same on a CPU.

    Args:
        targets: [R, 1]. grad_bias: the gradient of the bias is added here. weights: of the rows [R, 1].
    """
    z = logits.to(precise(logits.dtype))
    if bias is not None:
        z = z + bias
    slope = None
    if softcap is not None:
        z, slope = softcap.with_slope(z)
    lse = z.logsumexp(1, keepdim=True)
    is_target = torch.arange(z.shape[1], device=z.device) == targets  # [R, V]
    grad = (1 + 2 * z_loss_weight * lse) * (z - lse).exp() - is_target.to(z.dtype)
    if slope is not None:
        grad = grad * slope
    if weights is not None:
        grad = grad * weights
    if grad_bias is not None:
        grad_bias += grad.sum(0)
    return grad.to(logits.dtype), lse - z.gather(1, targets), lse


def product_dtype(features: Tensor) -> torch.dtype:
    """Return the dtype `F.linear` would compute in; autocast leaves float64 alone."""
    dtype = autocast_dtype(features.device)
    return features.dtype if dtype is None or features.dtype == torch.float64 else dtype
