"""Losses of a row's logits, over chunks of rows, so that all of [N, V] is never in memory.

    loss = 1/N sum_n sum_k shares_k parts_nk(z_n)        z = softcap(features weight^T + bias)

As in the cross entropy, a chunk of rows goes through all three matrix products at once, the gradient of its
logits in between comes from the score itself, and the backward pass only scales what the forward pass found.
Products run in the dtype that autocast asks for, everything else in float32.
Deviation from autograd: no second derivative.
Legend: N rows, V vocabulary, E width of the features, R rows of a chunk, K parts of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepa_lm.model.cross_entropy import CHUNK_ELEMENTS, CHUNK_ELEMENTS_ELSEWHERE, product_dtype
from jepa_lm.model.cross_entropy_kernels import precise
from jepa_lm.model.heads import Readout, Softcap


@dataclass(frozen=True)
class Aims:
    """What logits are scored against.

    Args:
        rows: tensors [N, ...], of which a chunk gets its rows. whole: tensors that each chunk gets entirely.
        width: values that a score holds for each row, beside its logits.
    """

    rows: tuple[Tensor, ...]
    whole: tuple[Tensor, ...] = ()
    width: int = 1


class Score(Protocol):
    """A loss of rows of logits."""

    def score(self, z: Tensor, shares: Tensor, *aims: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over rows of the K parts [K], and the gradient of `shares @ parts` at z [R, V].

        Args:
            z: logits [R, V], float32. shares: [K]. aims: `rows` of this chunk, then `whole`.
        """
        ...


def over_chunks(
    readout: Readout, score: Score, shares: Tensor, aims: Aims, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss, and its parts [K] without a gradient, with R V logits in memory at a time.

    Gradients go to features, weight and bias.

    Args:
        shares: weights of the parts [K]; not trained. chunk_rows: R; None chooses it for the device.
    """
    device = readout.features.device.type
    at_once = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS_ELSEWHERE)
    rows = chunk_rows or max(1, at_once // max(len(readout.weight), aims.width))
    loss, parts = _OverChunks.apply(
        *readout, score, shares, rows, len(aims.rows), *aims.rows, *aims.whole
    )
    return loss, parts


class _OverChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: Softcap | None,
        score: Score,
        shares: Tensor,
        chunk_rows: int,
        by_row: int,
        *aims: Tensor,
    ) -> tuple[Tensor, Tensor]:
        readout = Readout(features, weight, bias, softcap)
        chosen = Aims(aims[:by_row], aims[by_row:])
        wanted = ctx.needs_input_grad[:3]
        parts, gradients = _sweep(readout, score, shares, chosen, chunk_rows, wanted)
        ctx.rows, ctx.others = len(features), 5 + len(aims)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(parts)
        return (shares.to(parts.dtype) * parts).sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # Divide by N after the products: before them, the gradient could underflow in float16.
        scale = upstream / ctx.rows
        gradients = (None if g is None else (g * scale).to(g.dtype) for g in ctx.saved_tensors)
        return (*gradients, *[None] * ctx.others)


def _sweep(
    readout: Readout,
    score: Score,
    shares: Tensor,
    aims: Aims,
    chunk_rows: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the parts, and N times the wanted gradients of features, weight and bias."""
    dtype = product_dtype(readout.features)
    exact = precise(dtype)
    matrix = readout.weight.detach().to(dtype)
    grad_matrix = torch.zeros_like(matrix, dtype=exact) if wanted[1] else None
    bias = readout.bias
    grad_bias = None if bias is None or not wanted[2] else torch.zeros_like(bias, dtype=exact)
    sums, grad_features = [], []
    chunks = zip(
        readout.features.detach().to(dtype).split(chunk_rows),
        *(rows.split(chunk_rows) for rows in aims.rows),
        strict=True,
    )
    for features, *rows in chunks:
        z = (features @ matrix.T).to(exact)
        if bias is not None:
            z = z + bias
        z, slope = (z, None) if readout.softcap is None else readout.softcap.with_slope(z)
        parts, grad = score.score(z, shares, *rows, *aims.whole)
        sums.append(parts)
        if slope is not None:
            grad = grad * slope
        if grad_bias is not None:
            grad_bias = grad_bias + grad.sum(0)
        d = grad.to(dtype)
        if wanted[0]:
            grad_features.append((d @ matrix).to(readout.features.dtype))
        if grad_matrix is not None:
            grad_matrix = grad_matrix + d.T @ features
    found = torch.cat(grad_features) if wanted[0] else None
    if grad_matrix is not None:
        grad_matrix = grad_matrix.to(readout.weight.dtype)
    return torch.stack(sums).sum(0) / len(readout.features), (found, grad_matrix, grad_bias)
