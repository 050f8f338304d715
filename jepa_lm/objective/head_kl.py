"""Distance of latents as the language model's head sees them: KL divergence of two next-token laws.

    loss = mean over rows of KL(softmax(logits(target) / tau), softmax(logits(prediction) / tau))

Like the cross entropy, it goes through the logits in chunks and computes the gradient on the way, so that
all of [N, V] is never in memory and no product is computed twice: for a row, d KL / d z = (softmax(z) -
softmax(t)) / tau, times the slope of the softcap. Products run in the dtype that autocast asks for,
everything else in float32. Deviation from autograd: no second derivative.
Legend: N rows, V vocabulary, E width of the features, R rows of a chunk.
Source: NextLat (2511.05963).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jepa_lm.model import LanguageModel
from jepa_lm.model.cross_entropy import product_dtype
from jepa_lm.model.cross_entropy_kernels import precise
from jepa_lm.model.heads import Readout, Softcap
from jepa_lm.objective.distances import Comparison, total_weight
from jepa_lm.utils.kinds import Positive, checked

CHUNK_ROWS = 4096


class HeadKL(nn.Module):
    """KL divergence of the next-token law that a prediction implies from that of its target.

    Latents are read as final hidden states: predictions by the head of the model that is trained, targets by
    that of the model they come from, which may have another width. Only targets that count as answers matter.

    Args:
        train_head: also train the head; if false the loss trains what the prediction was made from alone.
        temperature: divides the logits of both sides.
    """

    fragile_at_zero = False
    needs_equal_widths = False

    @checked
    def __init__(self, *, train_head: bool = False, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.train_head, self.temperature = train_head, temperature

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D] and [B, N, E] -> scalar."""
        weights = comparison.rows
        if comparison.answers is not None:
            answers = comparison.answers.float()
            weights = answers if weights is None else weights * answers
        if weights is None:
            weights = prediction.new_ones(prediction.shape[:2])
        divergence = head_kl(
            comparison.model.readout(prediction, frozen=not self.train_head),
            _fixed(comparison.target_model, target),
            weights.flatten(),
            temperature=self.temperature,
        )
        return divergence / total_weight(weights, comparison.step_context)


@torch.no_grad()
def _fixed(model: LanguageModel, hidden: Tensor) -> Readout:
    return model.readout(hidden)


def head_kl_reference(
    prediction: Readout, target: Readout, weights: Tensor, *, temperature: float
) -> Tensor:
    """Compute the loss by its formula, with all logits at once; arguments as in `head_kl`."""
    z, t = (_logits(side) / temperature for side in (prediction, target))
    log_t = t.log_softmax(-1)
    divergences = (log_t.exp() * (log_t - z.log_softmax(-1))).sum(-1)
    return (weights * divergences).sum()


def _logits(side: Readout) -> Tensor:
    logits = F.linear(side.features, side.weight, side.bias)
    return logits if side.softcap is None else side.softcap(logits)


def head_kl(
    prediction: Readout,
    target: Readout,
    weights: Tensor,
    *,
    temperature: float,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """Return the weighted sum over rows of the divergence, with R V logits of a side in memory at a time.

    Gradients go to features, weight and bias of the prediction.

    Args:
        weights: of the rows [N]; not trained.
        chunk_rows: R.
    """
    loss: Tensor = _HeadKL.apply(*prediction, *target, weights, temperature, chunk_rows)
    return loss


class _HeadKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: Softcap | None,
        target_features: Tensor,
        target_weight: Tensor,
        target_bias: Tensor | None,
        target_softcap: Softcap | None,
        weights: Tensor,
        temperature: float,
        chunk_rows: int,
    ) -> Tensor:
        prediction = Readout(features, weight, bias, softcap)
        target = Readout(target_features, target_weight, target_bias, target_softcap)
        wanted = ctx.needs_input_grad[:3]
        loss, gradients = _sweep(prediction, target, weights, temperature, chunk_rows, wanted)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if g is None else (g * upstream).to(g.dtype) for g in ctx.saved_tensors)
        return (*gradients, *[None] * 8)


def _sweep(
    prediction: Readout,
    target: Readout,
    weights: Tensor,
    temperature: float,
    chunk_rows: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the loss and the wanted gradients of features, weight and bias of the prediction."""
    dtype = product_dtype(prediction.features)
    exact = precise(dtype)
    matrix, target_matrix = (side.weight.detach().to(dtype) for side in (prediction, target))
    grad_matrix = torch.zeros_like(matrix, dtype=exact) if wanted[1] else None
    bias = prediction.bias
    grad_bias = None if bias is None or not wanted[2] else torch.zeros_like(bias, dtype=exact)
    losses, grad_features = [], []
    chunks = zip(
        prediction.features.detach().to(dtype).split(chunk_rows),
        target.features.detach().to(dtype).split(chunk_rows),
        weights[:, None].to(exact).split(chunk_rows),
        strict=True,
    )
    for rows, target_rows, weight in chunks:
        t = _capped(target_rows @ target_matrix.T, target)[0] / temperature
        z, slope = _capped(rows @ matrix.T, prediction)
        log_t, log_z = t.log_softmax(1), (z / temperature).log_softmax(1)
        law = log_t.exp()
        losses.append((weight * law * (log_t - log_z)).sum())
        grad = weight / temperature * (log_z.exp() - law)
        if slope is not None:
            grad = grad * slope
        if grad_bias is not None:
            grad_bias = grad_bias + grad.sum(0)
        d = grad.to(dtype)
        if wanted[0]:
            grad_features.append((d @ matrix).to(prediction.features.dtype))
        if grad_matrix is not None:
            grad_matrix = grad_matrix + d.T @ rows
    features = torch.cat(grad_features) if wanted[0] else None
    if grad_matrix is not None:
        grad_matrix = grad_matrix.to(prediction.weight.dtype)
    return torch.stack(losses).sum(), (features, grad_matrix, grad_bias)


def _capped(products: Tensor, side: Readout) -> tuple[Tensor, Tensor | None]:
    """Return the logits and, with a softcap, its slope, from products [R, V]."""
    z = products.to(precise(products.dtype))
    if side.bias is not None:
        z = z + side.bias
    return (z, None) if side.softcap is None else side.softcap.with_slope(z)
