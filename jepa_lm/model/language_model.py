"""The language model that ships. It knows nothing about objectives, optimizers or quantization.

    ids -> embed -> x0 [B,T,D] -> encode [-> inject] -> hidden [B,T,D] -> logits [B,T,V]

Legend: B batch, T positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.cross_entropy import CrossEntropy, chunked_cross_entropy
from jepa_lm.model.dropout import Dropout
from jepa_lm.model.embeddings import TokenEmbedding, ValueEmbedding
from jepa_lm.model.heads import Head, Readout, Softcap
from jepa_lm.model.injector import ChunkInjector, Injected
from jepa_lm.model.layers import SmearGate, rms_norm
from jepa_lm.model.unet import Carry, UNet
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Rate, checked
from jepa_lm.utils.precision import autocast_dtype


class Mask(NamedTuple):
    """Positions whose tokens are hidden from a pass."""

    where: Tensor
    """[T] or [B, T], bool."""
    vector: Tensor
    """Replacement for the embedding at those positions, [D], or one for each position."""
    hide_next: bool
    """Also hide the bigram feature of the position after a masked one, which hashes the masked token."""


class Embedded(NamedTuple):
    """Output of `embed` and input of `encode`. Value embeddings depend on the ids, so they are included."""

    x: Tensor
    """The embedded input x0 [B, T, D]."""
    values: dict[int, Tensor]
    """Additions to the attention values by layer, {layer: [B, T, kv width]}."""


class Encoded(NamedTuple):
    """Hidden states of one pass."""

    last: Tensor
    """Output of the last block, before the final norm, [B, T, D]."""
    final: Tensor
    """Hidden states after the final norm, [B, T, D]; input of `logits`."""
    taps: dict[int, Tensor]
    """Outputs [B, T, D] of the requested blocks."""
    embedded: Embedded
    """The input of this pass."""
    carry: Carry | None
    """State of the pass before block `keep_at`, if `encode` was asked to keep it."""
    injected: Injected | None
    """Output of the injector, if the model has one."""


Dtype = Literal["float32", "bfloat16"]


class LanguageModel(nn.Module):
    """Language model of an embedding, a backbone and a head, composed by the config.

    Args:
        vocab_size: V. dim: D.
        embedding: the token table. backbone: a U-Net of blocks.
        head: maps hidden states and the token table to logits.
        softcap: bound on the logits, or None.
        bigram: features of the last two ids, added to the embedding, or None.
        value_embedding: see ValueEmbedding, or None.
        injector: adds predicted chunk latents before the final norm, or None.
        smear_gate: blend each position with the previous one.
        logit_bias: a learned bias [V] before the softcap.
        norm_eps: eps of the norm of the embedded input. final_norm_eps: eps of the final norm.
        parameter_dtype: `bfloat16` rounds every parameter to bfloat16, at the start and after each step. The
            tensors stay float32, as do gradients, moments and averages, so scoring and export need no
            special case.
        residual: dtype of the residual stream where products are in bfloat16: `float32`, or `bfloat16`, which
            halves what most kernels read and write. With other products it is float32.
        dropout: share of what the blocks add to the residual stream that the training task drops.
        kernel: which implementation of the backbone, see `UNet.use_kernel`; None keeps its default.

    Raises:
        UserError: a value is out of range, or a part does not fit the backbone.
    """

    @checked
    def __init__(
        self,
        *,
        vocab_size: Count,
        dim: Count,
        embedding: TokenEmbedding,
        backbone: UNet,
        head: Head,
        softcap: Softcap | None = None,
        bigram: nn.Module | None = None,
        value_embedding: ValueEmbedding | None = None,
        injector: ChunkInjector | None = None,
        smear_gate: bool = False,
        logit_bias: bool = False,
        norm_eps: float,
        final_norm_eps: float,
        parameter_dtype: Dtype = "float32",
        residual: Dtype = "float32",
        dropout: Rate = 0.0,
        kernel: str | None = None,
    ) -> None:
        super().__init__()
        if value_embedding is not None and not backbone.takes_values:
            raise UserError(
                "model/value_embedding: adds to the values of attention, but this backbone has no attention; "
                "remove it with ~model/value_embedding"
            )
        if kernel is not None:
            backbone.use_kernel(kernel)
        self.vocab_size, self.dim = vocab_size, dim
        self.norm_eps, self.final_norm_eps = norm_eps, final_norm_eps
        self.embedding, self.backbone, self.head = embedding, backbone, head
        self.softcap, self.bigram, self.value_embedding = softcap, bigram, value_embedding
        self.injector = injector
        self.smear = SmearGate(dim=dim) if smear_gate else None
        self.logit_bias = nn.Parameter(torch.zeros(vocab_size)) if logit_bias else None
        self.parameter_dtype, self.residual, self.dropout = parameter_dtype, residual, dropout
        self.round_parameters()

    @torch.no_grad()
    def round_parameters(self) -> None:
        """Round the parameters to bfloat16 if `parameter_dtype` says so; smaller updates are lost."""
        if self.parameter_dtype == "bfloat16":
            parameters: list[Tensor] = list(self.parameters())
            torch._foreach_copy_(parameters, [p.to(torch.bfloat16) for p in parameters])

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.backbone.blocks)

    def embed(self, inputs: Tensor, mask: Mask | None = None) -> Embedded:
        """inputs [B, T] int64 -> the embedded input and the value embeddings.

        With a mask, no trace of a masked token remains, except in the bigram feature of the next position
        if `mask.hide_next` is false. The smear gate runs after the mask.
        """
        x = self.embedding(inputs)
        if self.bigram is not None:
            features = self.bigram(inputs)
            if mask is not None:
                hidden = mask.where
                if mask.hide_next:
                    hidden = hidden | F.pad(hidden[..., :-1], (1, 0))
                features = features.masked_fill(hidden[..., None], 0.0)
            x = x + features
        if mask is not None:
            x = torch.where(mask.where[..., None], mask.vector.to(x.dtype), x)
        x = rms_norm(x, self.norm_eps)
        if self.smear is not None:
            x = self.smear(x)
        x = self._as_stream(x)
        values = {} if self.value_embedding is None else self.value_embedding(inputs)
        if mask is not None:
            values = {i: v.masked_fill(mask.where[..., None], 0.0) for i, v in values.items()}
        return Embedded(x, values)

    def _as_stream(self, x: Tensor) -> Tensor:
        """Return x in the dtype of the residual stream."""
        dtype = autocast_dtype(x.device)
        if dtype is None or x.dtype == torch.float64:
            return x
        # A sum over all blocks may exceed the range of float16.
        halved = self.residual == "bfloat16" and dtype == torch.bfloat16
        return x.to(dtype if halved else torch.float32)

    def encode(
        self,
        embedded: Embedded,
        taps: Collection[int] = (),
        keep_at: int | None = None,
        kept: Tensor | None = None,
    ) -> Encoded:
        """Run the backbone.

        Args:
            taps: layers whose outputs are returned as well.
            keep_at: also return the state of the pass before this block, for `resume`.
            kept: [L, 2, B, T, D] of `draw_dropout`, at the rate `dropout`; None to drop nothing.
        """
        carry = self.begin(embedded, until=keep_at or 0, taps=taps, kept=kept)
        encoded = self.resume(embedded, carry, taps)
        return encoded if keep_at is None else encoded._replace(carry=carry)

    def begin(
        self,
        embedded: Embedded,
        *,
        until: int,
        taps: Collection[int] = (),
        kept: Tensor | None = None,
    ) -> Carry:
        """Run the first blocks of a pass, up to but not including block `until`."""
        dropout = None if kept is None else Dropout(kept, self.dropout)
        start = Carry(0, embedded.x, embedded.x, (), {}, dropout)
        return self.backbone(start, embedded.values, until=until, taps=taps)

    def resume(self, embedded: Embedded, carry: Carry, taps: Collection[int] = ()) -> Encoded:
        """Finish a pass from the block where it was cut."""
        done = self.backbone(carry, embedded.values, until=self.layers, taps=taps)
        injected = None if self.injector is None else self.injector(done.x)
        hidden = done.x if injected is None else done.x + injected.addition.to(done.x.dtype)
        final = rms_norm(hidden, self.final_norm_eps)
        return Encoded(done.x, final, done.taps, embedded, None, injected)

    def tail(self, inputs: Tensor, count: int) -> Tensor:
        """Return the final hidden states of the last `count` positions: [B, T] -> [B, count, D].

        The last block skips the other positions, unless an injector needs them all.
        """
        embedded = self.embed(inputs)
        if self.injector is not None or count == inputs.shape[1]:
            return self.encode(embedded).final[:, -count:]
        carry = self.begin(embedded, until=self.layers - 1)
        return rms_norm(self.backbone.tail(carry, embedded.values, count), self.final_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [B, T, D] after the final norm -> logits [B, T, V], capped if the model has a softcap."""
        z = self.head(hidden, self.embedding.table.weight)
        if self.logit_bias is not None:
            z = z + self.logit_bias
        return z if self.softcap is None else self.softcap(z)

    def readout(self, hidden: Tensor, *, frozen: bool = False) -> Readout:
        """Return the factors of `logits(hidden)` for hidden states [B, T, D], N = B T.

        Args:
            frozen: gradients go to the hidden states alone, not to the head.
        """
        features = self.head.features(hidden, frozen=True) if frozen else self.head.features(hidden)
        weight: Tensor = self.head.weight(self.embedding.table.weight)
        bias: Tensor | None = self.logit_bias
        if frozen:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return Readout(features.flatten(0, 1), weight, bias, self.softcap)

    def cross_entropy(
        self, hidden: Tensor, targets: Tensor, z_loss_weight: float, weights: Tensor | None = None
    ) -> CrossEntropy:
        """Return the training loss of `logits(hidden)` on targets [B, T], without keeping the logits.

        Args:
            weights: of the targets [B, T]; None means 1.
        """
        return chunked_cross_entropy(
            *self.readout(hidden),
            targets.flatten(),
            z_loss_weight=z_loss_weight,
            weights=None if weights is None else weights.flatten(),
        )

    def forward(
        self, inputs: Tensor, taps: Collection[int] = (), keep_at: int | None = None
    ) -> tuple[Tensor, Encoded]:
        """inputs [B, T] int64 -> logits [B, T, V] and the hidden states of this pass; see `encode`."""
        encoded = self.encode(self.embed(inputs), taps, keep_at)
        return self.logits(encoded.final), encoded
