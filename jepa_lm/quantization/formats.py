"""Number formats of exported tensors. A format packs a float tensor into stored parts and back.

Legend: R rows, C columns of a matrix.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from jepa_lm.errors import UserError


class Format(Protocol):
    """How a tensor is stored."""

    name: str

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The stored parts, by suffix; `""` is the main one."""
        ...

    @staticmethod
    def unpack(parts: dict[str, Tensor]) -> Tensor:
        """The float32 tensor that the parts stand for."""
        ...


class _Cast:
    """A plain cast."""

    name: str
    dtype: torch.dtype

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        return {"": weight.to(self.dtype)}

    @staticmethod
    def unpack(parts: dict[str, Tensor]) -> Tensor:
        return parts[""].float()


class Float32(_Cast):
    """Four bytes a value, exact."""

    name = "float32"
    dtype = torch.float32


class Float16(_Cast):
    """Two bytes a value, 11 significant bits; values past 65504 are refused."""

    name = "float16"
    dtype = torch.float16

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        parts = super().pack(weight)
        if not torch.isfinite(parts[""]).all():
            raise UserError(
                "quantization: a tensor to be stored as float16 holds values past 65504 or no numbers; "
                "use quantization=none to keep float32"
            )
        return parts


class IntPerRow:
    """Signed integers with one float16 scale for each row: w ~ q * scale, q in [-m, m].

    m = 2^(bits-1) - 1; scale = quantile(|row|, clip_quantile) / m, so rare outliers saturate. A
    clip quantile just below 1 is the challenge's 99.99984 % (#1581).

    Args:
        bits: 8. clip_quantile: in (0, 1]; 1 clips nothing.
    """

    def __init__(self, *, bits: int, clip_quantile: float) -> None:
        if bits != 8:
            raise UserError(f"quantization: bits={bits}: only 8 can be stored so far")
        if not 0 < clip_quantile <= 1:
            raise UserError(f"quantization: clip_quantile={clip_quantile}: must lie in (0, 1]")
        self.clip_quantile = clip_quantile
        self.limit = 2 ** (bits - 1) - 1
        self.name = f"int{bits}"

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """weight [R, C] -> int8 [R, C] and float16 scales [R]."""
        weight = weight.float()
        clip = torch.quantile(weight.abs(), self.clip_quantile, dim=1)
        # The smallest normal float16 keeps an all-zero row from dividing by zero.
        scale = (clip / self.limit).clamp(min=torch.finfo(torch.float16).tiny).half()
        if not torch.isfinite(scale).all():
            raise UserError(
                "quantization: weights too large, or no numbers, for a float16 row scale"
            )
        q = (weight / scale.float()[:, None]).round().clamp(-self.limit, self.limit)
        return {"": q.to(torch.int8), "scale": scale}

    @staticmethod
    def unpack(parts: dict[str, Tensor]) -> Tensor:
        """q * scale, float32 [R, C]."""
        return parts[""].float() * parts["scale"].float()[:, None]


UNPACKERS: dict[str, type[Format]] = {
    "float32": Float32,
    "float16": Float16,
    "int8": IntPerRow,
}
"""By the name that an artifact records."""
