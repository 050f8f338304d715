"""Predictors and projectors: small networks [B, N, D] -> [B, N, E] that train and never ship.

`out_dim` is the width E, or None if a predictor keeps the width of its input. `offset` tells a
predictor how far ahead to predict, as an index into the offsets of the alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.layers import CausalSelfAttention, RotaryTables, rms_norm
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, NotNegative, Range, Share, checked

Activation = Literal["relu2", "relu", "gelu", "silu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu2": lambda x: F.relu(x).square(),
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}
Start = Literal["default", "orthogonal", "zero"]


class Predictor(nn.Module):
    """Map from latents [B, N, D] to [B, N, E]."""

    out_dim: int | None = None
    starts_at_zero = False
    """True if its output is zero at the start."""
    takes_tokens = False
    """True if `forward` also needs `tokens`, which `TokenRollout` gives it."""

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """[B, N, D] -> [B, N, E]. With `takes_tokens`: also `tokens` [B, N, D], the next token of each."""
        raise NotImplementedError

    def keep_tables(self, latents: int, device: torch.device) -> None:
        """Make what `forward` needs for so many latents, so that a compiled loss only reads it."""


class MLP(Predictor):
    """MLP [x +] W2 act(norm(W1 norm(x))).

    Args:
        dim: D. hidden: inner width. out: E, or None for D.
        activation: relu2 (squared), relu, gelu (exact) or silu. bias: give both linears a bias.
        input_norm: none or rms, before W1. hidden_norm: none, rms or layer_norm (with gain and
            bias), between W1 and the activation.
        residual: add the input. dropout: dropout rate of the hidden units.
        start: initialisation of the weights: default (PyTorch's) or orthogonal.
        output_start: initialisation of W2, None as `start`; zero also zeroes its bias.

    Raises:
        UserError: a value is out of range, or a residual has different widths.
    """

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        hidden: Count,
        activation: Activation,
        out: Count | None = None,
        bias: bool = False,
        input_norm: Literal["none", "rms"] = "none",
        hidden_norm: Literal["none", "rms", "layer_norm"] = "none",
        residual: bool = False,
        dropout: Share = 0.0,
        start: Literal["default", "orthogonal"] = "default",
        output_start: Start | None = None,
    ) -> None:
        super().__init__()
        self.out_dim = out or dim
        if residual and self.out_dim != dim:
            raise UserError(f"residual=true: needs out={out} to equal dim={dim}")
        self.activation = ACTIVATIONS[activation]
        self.input_norm, self.hidden_norm, self.residual = input_norm, hidden_norm, residual
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.norm = nn.LayerNorm(hidden) if hidden_norm == "layer_norm" else None
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.down = nn.Linear(hidden, self.out_dim, bias=bias)
        _start(self.up, start)
        _start(self.down, output_start or start)
        self.starts_at_zero = output_start == "zero" and not residual

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        h = self.up(rms_norm(x) if self.input_norm == "rms" else x)
        if self.norm is not None:
            h = self.norm(h)
        elif self.hidden_norm == "rms":
            h = rms_norm(h)
        h = self.activation(h)
        if self.dropout is not None:
            h = self.dropout(h)
        return x + self.down(h) if self.residual else self.down(h)


class Projection(Predictor):
    """Linear map from `dim` D to `out` E; None keeps the width."""

    @checked
    def __init__(
        self, *, dim: Count, out: Count | None = None, bias: bool = False, start: Start = "default"
    ) -> None:
        super().__init__()
        self.out_dim = out or dim
        self.linear = nn.Linear(dim, self.out_dim, bias=bias)
        _start(self.linear, start)
        self.starts_at_zero = start == "zero"

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return self.linear(x)


class Chain(Predictor):
    """Several predictors applied in the order of the mapping; those that take tokens are given them.

    Raises:
        UserError: `parts` is empty.
    """

    def __init__(self, *, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise UserError("parts={}: needs at least one")
        self.parts = nn.ModuleDict(parts)
        last = list(self.parts.values())[-1]
        assert isinstance(last, Predictor)
        self.out_dim = last.out_dim
        # Linear maps without bias map zero to zero.
        self.starts_at_zero = any(getattr(p, "starts_at_zero", False) for p in self.parts.values())
        self.takes_tokens = any(getattr(p, "takes_tokens", False) for p in self.parts.values())

    def forward(self, x: Tensor, offset: int = 0, tokens: Tensor | None = None) -> Tensor:
        for part in self.parts.values():
            given = {"tokens": tokens} if getattr(part, "takes_tokens", False) else {}
            x = part(x, offset, **given)
        return x


class OffsetConditioned(Predictor):
    """A shared predictor whose input gets a learned vector for each offset (#1006, #1012).

    Args:
        dim: D. offsets: number of offsets of the alignment. std: the vectors start at N(0, std).
        predictor: the shared predictor.
    """

    @checked
    def __init__(
        self, *, dim: Count, offsets: Count, std: NotNegative, predictor: Predictor
    ) -> None:
        super().__init__()
        self.offsets = offsets
        self.table = nn.Embedding(offsets, dim)
        nn.init.normal_(self.table.weight, std=std)
        self.predictor = predictor
        self.out_dim, self.starts_at_zero = predictor.out_dim, predictor.starts_at_zero

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return self.predictor(x + self.table.weight[offset], offset)


class LinearPerOffset(Predictor):
    """A linear map of its own for each offset of the alignment (LSE-MTP, 2604.06155).

    Args:
        dim: D. offsets: number of offsets. bias: give the maps a bias.
    """

    @checked
    def __init__(self, *, dim: Count, offsets: Count, bias: bool = False) -> None:
        super().__init__()
        self.out_dim, self.offsets = dim, offsets
        self.maps = nn.ModuleList(nn.Linear(dim, dim, bias=bias) for _ in range(offsets))

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        found: Tensor = self.maps[offset](x)
        return found


class Transition(Predictor):
    """Step of a state by a token: x + MLP(LayerNorm([x, token])), GELU between its linears (NextLat).

    Args:
        dim: D of states and tokens. hidden: inner width. layers: number of linears.
        output_start: initialisation of the last linear; zero starts with the state unchanged.
    """

    takes_tokens = True

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        hidden: Count,
        layers: Annotated[int, Range(least=2)] = 3,
        output_start: Literal["default", "zero"] = "default",
    ) -> None:
        super().__init__()
        self.out_dim = dim
        self.norm = nn.LayerNorm(2 * dim)
        widths = [2 * dim, *[hidden] * (layers - 1), dim]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        last = self.linears[-1]
        assert isinstance(last, nn.Linear)
        _start(last, output_start)

    def forward(self, x: Tensor, offset: int = 0, tokens: Tensor | None = None) -> Tensor:
        """States and tokens [B, N, D] -> next states [B, N, D]."""
        assert tokens is not None
        h = self.norm(torch.cat((x, tokens.to(x.dtype)), dim=-1))
        for i, linear in enumerate(self.linears):
            h = linear(F.gelu(h) if i else h)
        return x + h


class CausalAttention(Predictor):
    """Causal attention over earlier latents: x + attention(rms(x)), then x + W2 gelu(W1 rms(x)) (#1277).

    Args:
        dim: D. heads: divides D. hidden: inner width of the MLP.
    """

    @checked
    def __init__(self, *, dim: Count, heads: Count, hidden: Count) -> None:
        super().__init__()
        if dim % heads or (dim // heads) % 2:
            raise UserError(f"heads={heads}: must divide dim={dim} into heads of even width")
        self.out_dim = dim
        self.attention = CausalSelfAttention(
            dim=dim,
            heads=heads,
            kv_heads=heads,
            rotary=RotaryTables(rope_dims=dim // heads, base=10000.0, train_length=None),
            q_gain=1.0,
            exclude_self=False,
        )
        self.mlp = MLP(dim=dim, hidden=hidden, activation="gelu", input_norm="rms", residual=True)

    def keep_tables(self, latents: int, device: torch.device) -> None:
        self.attention.rotary.keep(latents, device)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return self.mlp(x + self.attention(rms_norm(x)))


def once(project: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a projector so that it projects a tensor once: context and target may be one tensor (#903)."""
    seen: list[Tensor] = []

    def call(x: Tensor) -> Tensor:
        if not seen or seen[0] is not x:
            seen[:] = x, project(x)
        return seen[1]

    return call


def _start(linear: nn.Linear, how: str) -> None:
    with torch.no_grad():
        if how == "orthogonal":
            nn.init.orthogonal_(linear.weight)
        elif how == "zero":
            nn.init.zeros_(linear.weight)
        if how == "zero" and linear.bias is not None:
            nn.init.zeros_(linear.bias)
