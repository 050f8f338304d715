"""The language model: what ships. It knows nothing of objectives, optimizers or quantization.

    ids -> embed -> x0 [B,T,D] -> encode -> hidden [B,T,D] -> logits [B,T,V]

Legend: B batch, T positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.embeddings import TokenEmbedding, ValueEmbedding
from jepa_lm.model.layers import SmearGate, rms_norm
from jepa_lm.model.unet import UNet


class Embedded(NamedTuple):
    """What `embed` hands to `encode`. Value embeddings depend on the ids, so they travel along."""

    x: Tensor
    """The embedded input x0 [B, T, D]."""
    values: dict[int, Tensor]
    """What each layer's attention adds to its values, {layer: [B, T, kv width]}."""


class Encoded(NamedTuple):
    """Hidden states of one pass."""

    last: Tensor
    """Output of the last block, before the final norm, [B, T, D]."""
    final: Tensor
    """After the final norm, [B, T, D]: what `logits` takes."""
    taps: dict[int, Tensor]
    """Outputs [B, T, D] of the blocks that were asked for."""


class LanguageModel(nn.Module):
    """Embedding, backbone and head, composed by the config.

    Args:
        vocab_size: V. dim: D.
        embedding: the token table. backbone: a U-Net of blocks.
        head: a module (hidden [B,T,D], table) -> [B,T,V].
        softcap: bounds the logits, or None.
        bigram: features of the last two ids added to the embedding, or None.
        value_embedding: see ValueEmbedding, or None.
        smear_gate: blend each position with the one before.
        logit_bias: a learned bias [V] before the softcap.
        norm_eps: of the first and the final norm.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        embedding: TokenEmbedding,
        backbone: UNet,
        head: nn.Module,
        softcap: nn.Module | None = None,
        bigram: nn.Module | None = None,
        value_embedding: ValueEmbedding | None = None,
        smear_gate: bool = False,
        logit_bias: bool = False,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.vocab_size, self.dim, self.norm_eps = vocab_size, dim, norm_eps
        self.embedding, self.backbone, self.head = embedding, backbone, head
        self.softcap, self.bigram, self.value_embedding = softcap, bigram, value_embedding
        self.smear = SmearGate(dim=dim) if smear_gate else None
        self.logit_bias = nn.Parameter(torch.zeros(vocab_size)) if logit_bias else None

    def embed(self, inputs: Tensor) -> Embedded:
        """inputs [B, T] int64 -> the embedded input and the value embeddings."""
        x = self.embedding(inputs)
        if self.bigram is not None:
            x = x + self.bigram(inputs)
        x = rms_norm(x, self.norm_eps)
        if self.smear is not None:
            x = self.smear(x)
        values = {} if self.value_embedding is None else self.value_embedding(inputs)
        return Embedded(x, values)

    def encode(self, embedded: Embedded, taps: Collection[int] = ()) -> Encoded:
        """Run the backbone; `taps` names layers whose outputs are wanted as well."""
        last, tapped = self.backbone(embedded.x, embedded.values, taps)
        return Encoded(last, rms_norm(last, self.norm_eps), tapped)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [B, T, D] after the final norm -> logits [B, T, V], capped when there is a cap."""
        z = self.head(hidden, self.embedding.table.weight)
        if self.logit_bias is not None:
            z = z + self.logit_bias
        return z if self.softcap is None else self.softcap(z)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Encoded]:
        """inputs [B, T] int64 -> logits [B, T, V] and the hidden states of this pass."""
        encoded = self.encode(self.embed(inputs))
        return self.logits(encoded.final), encoded


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each target in nats: logits [B, T, V], targets [B, T] -> [B, T] float32.

    The one place where cross entropy is computed, for training and evaluation alike.
    """
    flat = logits.float().flatten(0, 1)
    return F.cross_entropy(flat, targets.flatten(), reduction="none").view(targets.shape)
