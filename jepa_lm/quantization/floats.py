"""Floating-point formats: plain casts, and float8 with or without a scale per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from jepa_lm.quantization.parts import (
    SCALES,
    Parts,
    ScaleDtype,
    as_matrix,
    expect,
    matrix_shape,
    require_finite,
    scales,
)
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import checked

CASTS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Cast:
    """Storage by a plain cast.

    Args:
        dtype: float32 (exact), float16 (11 significant bits, up to 65504) or bfloat16 (8 bits).
    """

    rows_are_alone = True

    @checked
    def __init__(self, *, dtype: Literal["float32", "float16", "bfloat16"]) -> None:
        self.name: str = dtype
        self.dtype = CASTS[dtype]

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        cast = weight.to(self.dtype)
        if not torch.isfinite(cast).all():
            largest = torch.finfo(self.dtype).max
            raise UserError(
                f"quantization: a tensor to be stored as {self.name} holds values that are NaN, infinite or "
                f"beyond {largest:.6g}; use quantization=none to keep float32"
            )
        return {"": cast}

    def fake_quantize(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype).to(weight.dtype)

    def spec(self) -> dict[str, Any]:
        return {"kind": "cast", "dtype": self.name}

    @staticmethod
    def unpack(spec: Mapping[str, Any], parts: Parts, shape: tuple[int, ...]) -> Tensor:
        expect(parts[""], CASTS[spec["dtype"]], shape)
        return parts[""].float()


class Float8:
    """float8_e4m3 (4 significant bits): w ~ q * scale, largest |q| 448.

    Args:
        scale_dtype: dtype of the scale per row: bfloat16, float16 or float32. None for a plain cast without
            scales (#903); values below 2^-6 then lose significant bits, and values below 2^-10 become zero.
    """

    name = "float8"
    rows_are_alone = True
    largest = torch.finfo(torch.float8_e4m3fn).max

    @checked
    def __init__(self, *, scale_dtype: ScaleDtype | None) -> None:
        self.scale_dtype = scale_dtype

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        if self.scale_dtype is None:
            return {"": self._plain(weight)}
        q, scale = self._rounded(weight, self.scale_dtype)
        require_finite(scale)
        return {"": q, "scale": scale}

    def _plain(self, weight: Tensor) -> Tensor:
        """Return the plain cast, [R, C]."""
        if not (weight.abs() <= self.largest).all():
            raise UserError(
                f"quantization: a tensor to be stored as float8 holds values that are NaN, infinite or "
                f"beyond {self.largest:g}; scale_dtype=bfloat16 gives each row a scale"
            )
        return as_matrix(weight.float()).to(torch.float8_e4m3fn)

    def fake_quantize(self, weight: Tensor) -> Tensor:
        if self.scale_dtype is None:
            return weight.float().to(torch.float8_e4m3fn).to(weight.dtype)
        q, scale = self._rounded(weight, self.scale_dtype)
        return q.float().mul_(scale.float()).view(weight.shape).to(weight.dtype)

    def _rounded(self, weight: Tensor, scale_dtype: str) -> tuple[Tensor, Tensor]:
        matrix = as_matrix(weight.float())
        scale = scales(matrix.abs().amax(1, keepdim=True) / self.largest, scale_dtype)
        q = (matrix / scale.float()).clamp_(-self.largest, self.largest)
        return q.to(torch.float8_e4m3fn), scale

    def spec(self) -> dict[str, Any]:
        return {"kind": "float8", "scale_dtype": self.scale_dtype}

    @staticmethod
    def unpack(spec: Mapping[str, Any], parts: Parts, shape: tuple[int, ...]) -> Tensor:
        rows, columns = matrix_shape(shape)
        expect(parts[""], torch.float8_e4m3fn, (rows, columns))
        if spec["scale_dtype"] is None:
            return parts[""].float().view(shape)
        expect(parts["scale"], SCALES[spec["scale_dtype"]], (rows, 1))
        return (parts[""].float() * parts["scale"].float()).view(shape)
