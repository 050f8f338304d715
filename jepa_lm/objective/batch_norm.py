"""Batch norm of latents: a predictor that standardises each dimension over the rows of a micro-batch.

It keeps no running averages. A projector never ships and is never asked about a single text, so it always has
a batch, and a run has no state beyond the parameters: one with weight 0 is the control to the bit, and
measuring changes nothing.
Legend: B batch, N latents of a row, R = B N rows (of all ranks if joint), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lm.objective.predictors import ACTIVATIONS, Activation, Predictor
from jepa_lm.objective.ranks import sum_over_ranks
from jepa_lm.objective.statistics import joint_mean
from jepa_lm.utils.errors import EveryRankError
from jepa_lm.utils.kinds import Count, Positive, checked


class BatchNorm(Predictor):
    """Batch norm gain (x - mean) / sqrt(var + eps) + bias over the rows, then an activation.

    Mean and variance (denominator R) are those of the tensor at hand: context and target latents that are
    projected apart are standardised apart.

    Args:
        dim: D. joint: take the rows of all ranks, not only of this one. activation: None for none.

    Raises:
        EveryRankError: there is a single row.
    """

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        joint: bool,
        activation: Activation | None = None,
        eps: Positive = 1e-5,
    ) -> None:
        super().__init__()
        self.out_dim, self.joint, self.eps = dim, joint, eps
        self.activation = None if activation is None else ACTIVATIONS[activation]
        self.gain, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        rows = x.float().flatten(0, -2)  # [R, D]
        if len(rows) < 2:
            raise EveryRankError(
                "BatchNorm: a micro-batch of one latent has no spread; raise data.batch_tokens or lower "
                "trainer.accumulate_grad_batches"
            )
        normed = batch_normed(rows, joint=self.joint, eps=self.eps) * self.gain + self.bias
        return (normed if self.activation is None else self.activation(normed)).view(x.shape)


def batch_normed(rows: Tensor, *, joint: bool, eps: float) -> Tensor:
    """Scale rows [R, D] to mean 0 and variance 1, with gradients through both."""
    if not joint:
        centred = rows - rows.mean(0)
        return centred * torch.rsqrt(centred.square().mean(0) + eps)
    mean, count = joint_mean(rows)
    centred = rows - mean
    return centred * torch.rsqrt(sum_over_ranks(centred.square().sum(0)) / count + eps)
