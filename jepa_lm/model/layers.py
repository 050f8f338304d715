"""Layers shared by the backbones: RMS norm, rotary positions, attention, MLP, smear gate.

Legend: B batch, T positions, D model width, H query heads, K key/value heads, d head width.
Source: the transformer of parameter-golf submissions #832, #1196, #1243 and #1581.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOAT32_EPS = 1.1920929e-7


ORTHOGONAL_MIN_SIDE = 64
"""#832 and #1243 start matrices orthogonal only when both sides are at least this long."""


def is_large(weight: Tensor) -> bool:
    """Return whether `orthogonal_init` applies to this matrix."""
    return min(weight.shape) >= ORTHOGONAL_MIN_SIDE


def rms_norm(x: Tensor, eps: float = FLOAT32_EPS) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) over the last axis, without a gain; eps is the same in bfloat16.

    The result has the dtype of x: autocast would make it float32 on a GPU, but not on a CPU.
    """
    return F.rms_norm(x, (x.shape[-1],), eps=eps).to(x.dtype)


def rotary_angles(
    positions: int, rope_dims: int, *, base: float, train_length: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [T, rope_dims/2] of the rotary embedding, float32.

    Beyond the training length the base grows by (T / train_length)^(n / (n - 2)), n = rope_dims, so
    that the slowest wave still spans the text ("NTK-aware" scaling).
    """
    if train_length is not None and positions > train_length:
        base *= (positions / train_length) ** (rope_dims / (rope_dims - 2))
    exponents = torch.arange(0, rope_dims, 2, dtype=torch.float32, device=device) / rope_dims
    times = torch.arange(positions, dtype=torch.float32, device=device)
    angles = torch.outer(times, base**-exponents)  # [T, rope_dims / 2]
    return angles.cos(), angles.sin()


class RotaryTables:
    """Cosines and sines of the rotary embedding, kept by length for all blocks and passes of a model.

    A compiled pass reads tables that `keep` has made; it would otherwise compute them anew in every kernel
    that rotates something.

    Args:
        rope_dims, base, train_length: see `rotary_angles`.
    """

    KEPT = 8
    """Lengths that are kept beside those of `keep`; evaluation may come along with many."""

    def __init__(self, *, rope_dims: int, base: float, train_length: int | None) -> None:
        self._settings = dict(base=base, train_length=train_length)
        self._rope_dims = rope_dims
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._passing: list[tuple[int, torch.device]] = []
        """Tables that were not asked for by `keep`, oldest first."""

    def __call__(self, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [T, rope_dims/2], float32."""
        if (positions, device) in self._tables:
            return self._tables[positions, device]
        if torch.compiler.is_compiling():
            return self._computed(positions, device)
        if len(self._passing) >= self.KEPT:
            self._tables.pop(self._passing.pop(0), None)
        self._passing.append((positions, device))
        return self._made(positions, device)

    def keep(self, positions: int, device: torch.device) -> None:
        """Make the tables of a length, and keep them for later calls."""
        if (positions, device) in self._passing:
            self._passing.remove((positions, device))
        self._made(positions, device)

    def _made(self, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            self._tables[positions, device] = made = self._computed(positions, device)
        return made

    def _computed(self, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return rotary_angles(positions, self._rope_dims, device=device, **self._settings)  # type: ignore[arg-type]

    def __deepcopy__(self, memo: Any) -> RotaryTables:
        """Share the tables: they are constants."""
        return self


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2*cos.shape[-1] dims of x [B, H, T, d], half against half; keep the others."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)


def exclude_self(y: Tensor, v: Tensor) -> Tensor:
    """XSA: subtract from each head's output its projection onto the value at the same position.

    Args:
        y: attention output [B, H, T, d].
        v: values [B, K, T, d]; query head h reads kv head h // (H / K).
    """
    B, H, T, d = y.shape
    unit = F.normalize(v, dim=-1).to(y.dtype).unsqueeze(2)  # [B, K, 1, T, d]
    grouped = y.reshape(B, v.shape[1], H // v.shape[1], T, d)  # [B, K, H / K, T, d]
    projection = (grouped * unit).sum(-1, keepdim=True) * unit
    return (grouped - projection).reshape(B, H, T, d)


class CausalSelfAttention(nn.Module):
    """Grouped-query causal attention with normalised queries and keys and a gain per query head.

    Args:
        dim: model width D. heads: H. kv_heads: K, divides H.
        rotary: tables of the rotated dims of each head.
        q_gain: start of the learned gain on each query head.
        exclude_self: subtract the direction of the position's own value from the output (XSA).
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        rotary: RotaryTables,
        q_gain: float,
        exclude_self: bool,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.rotary, self.exclude_self = rotary, exclude_self
        kv_width = kv_heads * self.head_dim
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, kv_width, bias=False)
        self.value = nn.Linear(dim, kv_width, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((heads,), q_gain))

    def forward(
        self,
        x: Tensor,
        extra_value: Tensor | None = None,
        count: int | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """x [B, T, D], extra_value [B, T, K*d] added to the values -> [B, T, D].

        With `count`, only the last `count` positions are queries: [B, count, D]. `visible` [B, 1, T, T] says
        what each position sees, in place of all before it.
        """
        B, T, D = x.shape
        asking = T if count is None else count
        value = self.value(x)
        if extra_value is not None:
            value = value + extra_value.to(value.dtype)
        q = self.query(x[:, T - asking :]).view(B, asking, self.heads, self.head_dim)
        k = self.key(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # [B, K, T, d]
        v = value.view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # [B, K, T, d]
        cos, sin = self.rotary(T, x.device)
        q = apply_rotary(rms_norm(q.transpose(1, 2)), cos[T - asking :], sin[T - asking :])
        q = q * self.q_gain.to(q.dtype)[:, None, None]  # [B, H, count, d]
        k = apply_rotary(rms_norm(k), cos, sin)
        seen = visible
        if asking < T:
            seen = torch.ones(asking, T, dtype=torch.bool, device=x.device).tril(T - asking)
        grouped = self.kv_heads != self.heads
        keys, values = k, v
        if grouped and q.is_cuda and (seen is not None or q.dtype == torch.float32):
            # No fused kernel takes grouped heads with a mask or in float32: PyTorch would fall back to one
            # that holds all scores.
            grouped = False
            keys, values = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        y = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=seen, is_causal=seen is None, enable_gqa=grouped
        )
        if self.exclude_self:
            y = exclude_self(y, v[:, :, T - asking :])
        return self.out(y.transpose(1, 2).reshape(B, asking, D))


class AlignedLinear(nn.Linear):
    """Linear layer without bias, whose product has a multiple of 64 columns on a GPU.

    An H200 computes [65536, 640] @ [640, 2708] at 198 TFLOP/s, and with 2816 columns at 702 (docs/log.md).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return aligned_product(x, self.weight) if x.is_cuda else super().forward(x)


def aligned_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x weight^T, as the first columns of a product with a multiple of 64 columns."""
    columns = len(weight)
    return F.linear(x, F.pad(weight, (0, 0, 0, -columns % 64)))[..., :columns]


class SquaredReluMLP(nn.Module):
    """MLP down(act(up(x))) with act(x) = leaky_relu(x, negative_slope)^2; slope 0 is relu^2. No bias.

    Args:
        inner_norm_eps: eps of an RMS norm before `down` (#903), or None for no norm.
    """

    def __init__(
        self, *, dim: int, hidden: int, negative_slope: float, inner_norm_eps: float | None = None
    ) -> None:
        super().__init__()
        self.negative_slope, self.inner_norm_eps = negative_slope, inner_norm_eps
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.up(x), self.negative_slope)
        hidden = hidden * hidden  # in the dtype of the product: autocast would square in float32
        if self.inner_norm_eps is not None:
            hidden = rms_norm(hidden, self.inner_norm_eps)
        return self.down(hidden)


class SmearGate(nn.Module):
    """Blend of each position with the previous one: (1-g) x_t + g x_{t-1}, g = sigmoid(gate), x_{-1} = 0."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate).to(x.dtype)
        previous = F.pad(x[:, :-1], (0, 0, 1, 0))
        return torch.lerp(x, previous, g)
