"""Distance of latents as the language model's head sees them: KL divergence of two next-token laws.

    loss = mean over rows of KL(softmax(logits(target) / tau), softmax(logits(prediction) / tau))

The logits go through chunks, see `chunked_logits`: for a row, d KL / d z = (softmax(z) - softmax(t)) / tau.
Legend: N rows, V vocabulary, E width of the features, R rows of a chunk.
Source: NextLat (2511.05963).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model import LanguageModel
from jepa_lm.model.cross_entropy import product_dtype
from jepa_lm.model.cross_entropy_kernels import precise
from jepa_lm.model.heads import Readout, Softcap
from jepa_lm.objective.chunked_logits import Aims, over_chunks
from jepa_lm.objective.distances import Comparison, total_weight
from jepa_lm.utils.kinds import Positive, checked


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
        weights = row_weights(prediction, comparison)
        divergence = head_kl(
            comparison.model.readout(prediction, frozen=not self.train_head),
            _fixed(comparison.target_model, target),
            weights.flatten(),
            temperature=self.temperature,
        )
        return divergence / total_weight(weights, comparison.step_context)


def row_weights(prediction: Tensor, comparison: Comparison) -> Tensor:
    """Return the weight of each prediction [B, N] in a loss of the token that it stands for."""
    weights = comparison.rows
    if comparison.answers is not None:
        answers = comparison.answers.float()
        weights = answers if weights is None else weights * answers
    return prediction.new_ones(prediction.shape[:2]) if weights is None else weights


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
    chunk_rows: int | None = None,
) -> Tensor:
    """Return the weighted sum over rows of the divergence, with R V logits of a side in memory at a time.

    Gradients go to features, weight and bias of the prediction.

    Args:
        weights: of the rows [N]; not trained.
        chunk_rows: R; None chooses it for the device.
    """
    dtype = product_dtype(prediction.features)
    features, matrix = (x.detach().to(dtype) for x in target[:2])
    whole = (matrix,) if target.bias is None else (matrix, target.bias.detach())
    aims = Aims((features, weights[:, None].to(precise(dtype))), whole)
    score = _Divergence(target.softcap, temperature)
    mean, _ = over_chunks(prediction, score, weights.new_ones(1), aims, chunk_rows)
    return len(weights) * mean


class _Divergence:
    """Score of logits against the law of a target, for `over_chunks`.

    Args:
        softcap: of the target. temperature: divides the logits of both sides.
    """

    def __init__(self, softcap: Softcap | None, temperature: float) -> None:
        self.softcap, self.temperature = softcap, temperature

    def score(self, z: Tensor, shares: Tensor, *aims: Tensor) -> tuple[Tensor, Tensor]:
        """See `jepa_lm.objective.chunked_logits.Score`; aims: features, weight of each row, matrix, bias."""
        features, weight, matrix, *bias = aims
        t = (features @ matrix.T).to(z.dtype)
        for added in bias:
            t = t + added
        t = t if self.softcap is None else self.softcap.with_slope(t)[0]
        log_t = (t / self.temperature).log_softmax(1)
        log_z = (z / self.temperature).log_softmax(1)
        law = log_t.exp()
        loss = (weight * law * (log_t - log_z)).sum()
        return loss[None], weight / self.temperature * (log_z.exp() - law)
