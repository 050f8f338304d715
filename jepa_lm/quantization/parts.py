"""Helpers shared by all formats: tensors viewed as matrices, scales of rows, stored parts.

Legend: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa_lm.utils.errors import UserError

Parts = Mapping[str, Tensor]
"""Stored tensors of one parameter, by suffix; `""` is the main one."""
ScaleDtype = Literal["float16", "bfloat16", "float32"]
SCALES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def as_matrix(weight: Tensor) -> Tensor:
    """View a tensor as a matrix [R, C]; a vector is one row, a scalar one value."""
    return weight.reshape(1, -1) if weight.ndim < 2 else weight.flatten(1)


def scales(exact: Tensor, dtype: str) -> Tensor:
    """Return scales as stored. The lower bound keeps rows of zeros from dividing by zero."""
    return exact.clamp(min=torch.finfo(torch.float16).tiny).to(SCALES[dtype])


def require_finite(scale: Tensor) -> None:
    """Check that scales are finite; for files only, because the check would stall a training step."""
    if not torch.isfinite(scale).all():
        dtype = str(scale.dtype).removeprefix("torch.")
        raise UserError(f"quantization: weights are NaN, infinite or too large for a {dtype} scale")


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return R and C of `as_matrix` for a tensor of this shape."""
    rows = 1 if len(shape) < 2 else shape[0]
    return rows, int(np.prod(shape, dtype=np.int64)) // max(1, rows)


def expect(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Check the dtype and shape of a stored part.

    Raises:
        ValueError: they differ; names the actual and the expected ones.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f"{tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}")
