"""Chunk injector: predicted chunk latents added to the hidden state, at inference too (#832).

u_c = mean of sg(h) over chunk c; z_c = W2 silu(rms(W1 u_c)); zhat_c = V2 silu(rms(V1 z_{c-1})) with a
learned start for c = 0; h += repeat(W_inj sg(zhat)). Causal: chunk c is predicted from chunk c - 1.
Stop-gradients separate the trunk and the predictor from the injection, so cross entropy trains only
W_inj here, and a JEPA loss on z and zhat trains the rest without touching the trunk.
Legend: B batch, T positions, C whole chunks of T, D model width, E latent width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.layers import is_large, rms_norm
from jepa_lm.utils.kinds import Count, NotNegative, checked


class Injected(NamedTuple):
    """Output of the injector."""

    latents: Tensor
    """z [B, C, E]."""
    predictions: Tensor
    """zhat [B, C, E], the prediction of `latents` at the same index."""
    addition: Tensor
    """Addition to the hidden state, [B, T, D]; zero on a tail shorter than a chunk."""


class ChunkInjector(nn.Module):
    """Projector, predictor and injection of #832.

    Args:
        dim: D. chunk: positions of a chunk. hidden: width inside the projector. latent: E.
        start_std: the start vector is N(0, start_std).
        orthogonal_init: matrices with both sides >= 64 start orthogonal; W_inj always starts at zero.

    Raises:
        UserError: a value is out of range.
    """

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        chunk: Count,
        hidden: Count,
        latent: Count,
        start_std: NotNegative,
        orthogonal_init: bool,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.project_in = nn.Linear(dim, hidden, bias=False)
        self.project_out = nn.Linear(hidden, latent, bias=False)
        self.start = nn.Parameter(start_std * torch.randn(latent))
        self.predict_in = nn.Linear(latent, latent, bias=False)
        self.predict_out = nn.Linear(latent, latent, bias=False)
        self.inject = nn.Linear(latent, dim, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear) and orthogonal_init and is_large(module.weight):
                nn.init.orthogonal_(module.weight)
        nn.init.zeros_(self.inject.weight)

    def behind_stop_gradient(self) -> list[nn.Parameter]:
        """Return the parameters that cross entropy never trains."""
        return [p for p in self.parameters() if p is not self.inject.weight]

    def forward(self, hidden: Tensor) -> Injected:
        """hidden [B, T, D], output of the last block -> latents, predictions and the addition."""
        B, T, D = hidden.shape
        chunks = T // self.chunk
        whole = hidden.detach()[:, : chunks * self.chunk].reshape(B, chunks, self.chunk, D)
        latents = self.project_out(F.silu(rms_norm(self.project_in(whole.mean(2)))))  # [B, C, E]
        start = self.start.to(latents.dtype).expand(B, 1, -1)  # [B, 1, E]
        previous = torch.cat((start, latents[:, :-1]), dim=1)[:, :chunks]  # [B, C, E]
        predictions = self.predict_out(F.silu(rms_norm(self.predict_in(previous))))
        addition = self.inject(predictions.detach()).repeat_interleave(self.chunk, dim=1)
        tail = T - chunks * self.chunk  # positions after the last whole chunk
        return Injected(latents, predictions, F.pad(addition, (0, 0, 0, tail)))
