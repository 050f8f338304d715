"""Embeddings of token ids: token table, bigram features, value embeddings.

Legend: B batch, T positions, D model width, V vocabulary, E factor width, n buckets.
Source: submissions #832, #1243 (xor bigram, value embedding), #1581 (Cantor bigram), #903 (factored).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, NotNegative, Range, checked


class TokenEmbedding(nn.Module):
    """Token table [V, D], or a factored one: table [V, E], then Linear E -> D without bias.

    Args:
        vocab_size: V. dim: D.
        factor_dim: E, or None for a table of full width.
        std: the table starts at N(0, std).
    """

    @checked
    def __init__(
        self, *, vocab_size: Count, dim: Count, factor_dim: Count | None, std: NotNegative
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, factor_dim or dim)
        nn.init.normal_(self.table.weight, std=std)
        self.expand = nn.Linear(factor_dim, dim, bias=False) if factor_dim else None

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [B, T] int64 -> [B, T, D]."""
        x = self.table(inputs)
        return x if self.expand is None else self.expand(x)


class XorBigram(nn.Module):
    """Features of (previous, current id), hashed by xor: table [n, width] -> Linear -> times a scalar.

    index_t = xor(36313 t_i, 27191 t_{i-1}) mod (n - 1); position 0 reads the last bucket. The table
    starts at zero. #832 starts the linear at zero as well, a saddle point where both gradients stay zero
    for ever: `zero_projection` keeps that published start; otherwise it is orthogonal, as in #1243.
    """

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        buckets: Annotated[int, Range(least=2)],
        width: Count,
        scale: float,
        zero_projection: bool,
    ) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = nn.Embedding(buckets, width)
        nn.init.zeros_(self.table.weight)
        self.expand = nn.Linear(width, dim, bias=False)
        if zero_projection:
            nn.init.zeros_(self.expand.weight)
        else:
            nn.init.orthogonal_(self.expand.weight)
        self.scale = nn.Parameter(torch.tensor(scale))

    def index(self, inputs: Tensor) -> Tensor:
        """Return the bucket of each position, [B, T]."""
        mixed = torch.bitwise_xor(36313 * inputs[:, 1:], 27191 * inputs[:, :-1])
        return F.pad(mixed % (self.buckets - 1), (1, 0), value=self.buckets - 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [B, T] int64 -> [B, T, D]."""
        return self.expand(self.table(self.index(inputs))) * self.scale


class CantorBigram(nn.Module):
    """Features of the pair (previous id a, current id b) by Cantor pairing: (s(s+1)/2 + b) mod n, s = a + b.

    At position 0, a = 0. The table [n, D] starts at N(0, std).
    """

    @checked
    def __init__(self, *, dim: Count, buckets: Count, std: NotNegative) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = nn.Embedding(buckets, dim)
        nn.init.normal_(self.table.weight, std=std)

    def index(self, inputs: Tensor) -> Tensor:
        """Return the bucket of each position, [B, T]."""
        s = inputs + F.pad(inputs[:, :-1], (1, 0))
        return (s * (s + 1) // 2 + inputs) % self.buckets

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [B, T] int64 -> [B, T, D]."""
        return self.table(self.index(inputs))


class ValueEmbedding(nn.Module):
    """A second token table whose projection is added to the attention values of some layers (#1243).

    One table [V, width] -> Linear to the width of keys and values, times a learned scalar; each
    listed layer also has its own scalar (start 1).

    Args:
        dim, heads, kv_heads: sizes of the backbone's attention, whose values have
            dim / heads * kv_heads dims.
        layers: indices of the layers that read it; negative ones count from the end.
        total_layers: depth of the backbone.
    """

    @checked
    def __init__(
        self,
        *,
        vocab_size: Count,
        width: Count,
        dim: Count,
        heads: Count,
        kv_heads: Count,
        layers: list[int],
        total_layers: Count,
        scale: float,
        std: NotNegative,
    ) -> None:
        super().__init__()
        bad = [i for i in layers if not -total_layers <= i < total_layers]
        if bad:
            raise UserError(
                f"model.value_embedding.layers={list(layers)}: layer {bad[0]} does not exist, the "
                f"backbone has layers 0..{total_layers - 1}"
            )
        self.table = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.table.weight, std=std)
        self.expand = nn.Linear(width, dim // heads * kv_heads, bias=False)
        nn.init.orthogonal_(self.expand.weight)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.layers = [i % total_layers for i in layers]
        self.layer_scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in self.layers)

    def forward(self, inputs: Tensor) -> dict[int, Tensor]:
        """inputs [B, T] -> additions to the attention values by layer, {layer: [B, T, kv width]}."""
        shared = self.expand(self.table(inputs)) * self.scale
        return {i: shared * s for i, s in zip(self.layers, self.layer_scales, strict=True)}
