"""Number formats of exported tensors. A format packs a float tensor into stored parts and back.

A format of your own is a class with the members of `Format` in a file of its own, whose spec names the class
(`"kind": "my_module.MyFormat"`); `trust=[my_module]` lets export.py and eval.py use it.

A tensor of any shape is viewed as a matrix whose rows are its first axis; a vector is one row.
Legend: R rows, C columns, g columns per group, K groups per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lm.quantization.floats import Cast, Float8
from jepa_lm.quantization.packing import entropy, pack, packed_bytes, unpack
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
from jepa_lm.utils.kinds import Count, Positive, PositiveShare, Range, checked

__all__ = ["Cast", "Float8", "Format", "Integer", "Parts", "as_matrix", "unpack_parts"]


class Format(Protocol):
    """Interface of a storage format."""

    name: str
    """Name shown to users."""

    @property
    def rows_are_alone(self) -> bool:
        """True if each row is stored independently of the others: tensors can be quantized together."""
        ...

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the stored parts."""
        ...

    def fake_quantize(self, weight: Tensor) -> Tensor:
        """Return the weight as loading would restore it, with the same dtype, shape and device."""
        ...

    def spec(self) -> dict[str, Any]:
        """Return the plain values that `unpack` needs; `kind` is in `KINDS` or the path of the class."""
        ...

    @staticmethod
    def unpack(spec: Mapping[str, Any], parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """Return the float32 tensor of this shape that the parts represent.

        Raises:
            ValueError, KeyError, RuntimeError: spec and parts do not match the format or the shape.
        """
        ...


class Integer:
    """Signed integers with a scale per row or per group of columns: w ~ q * scale.

    q lies in [-m, m], m = 2^(bits-1) - 1; scale = max(clip, min_clip) / m, where clip is a quantile of |w|,
    so that rare outliers saturate. Given several quantiles, each row (or group) uses the one with the least
    squared error. With a floor, small rows use few of the integers, which compress better but lose precision.

    Args:
        bits: 2 to 8. group: g, or None for whole rows; the last group of a row may be shorter.
        clip: a quantile in (0, 1], or several; 1 is the largest value (#903), 0.9999984 is #1581's, and
            [0.999, 0.9995, 0.9999, 0.99999, 1.0] is #1243's choice.
        scale_dtype: bfloat16, float16 or float32.
        min_clip: least value that the largest integer represents; 1 gives the floor of 1/m under the scales
            of #1243, #832, #1581 and #1196. None for no floor.
        one_clip: with several quantiles, use the same one for all rows of a tensor (#1243).
    """

    @checked
    def __init__(
        self,
        *,
        bits: Annotated[int, Range(least=2, most=8)],
        group: Count | None,
        clip: PositiveShare | Sequence[PositiveShare],
        scale_dtype: ScaleDtype,
        min_clip: Positive | None = None,
        one_clip: bool = False,
    ) -> None:
        clips = [clip] if isinstance(clip, int | float) else list(clip)
        if not clips:
            raise UserError("clip=[]: needs at least one quantile")
        self.bits, self.group, self.clips, self.scale_dtype = bits, group, clips, scale_dtype
        self.min_clip, self.one_clip = min_clip, one_clip
        self.limit = 2 ** (bits - 1) - 1
        self.name = f"int{bits}" + (f" by {group}" if group else "")

    @property
    def rows_are_alone(self) -> bool:
        """True if each row is stored independently of the others."""
        return not self.one_clip or len(self.clips) == 1

    def scaled_by(self, *, clip: float | None, scale_dtype: ScaleDtype | None) -> Integer:
        """Return a copy with another quantile or scale dtype; None keeps the present one."""
        return Integer(
            bits=self.bits,
            group=self.group,
            clip=self.clips if clip is None else clip,
            scale_dtype=scale_dtype or self.scale_dtype,
            min_clip=self.min_clip,
            one_clip=self.one_clip,
        )

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return float integers [R, K, g] and scales [R, K, 1]; a short last group is padded with zeros."""
        grouped = self._grouped(as_matrix(weight.float()))
        (q, scale), *others = (self._rounded(grouped, c) for c in _clips(grouped, self.clips))
        if not others:
            return q, scale
        error = self._squared_error(q, scale, grouped)
        for q2, scale2 in others:
            error2 = self._squared_error(q2, scale2, grouped)
            better = error2 < error
            q, scale = torch.where(better, q2, q), torch.where(better, scale2, scale)
            error = torch.where(better, error2, error)
        return q, scale

    def _rounded(self, grouped: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return integers and scales; the largest integer represents the values `clip` [R, K, 1]."""
        if self.min_clip is not None:
            clip = clip.clamp(min=self.min_clip)
        scale = scales(clip / self.limit, self.scale_dtype)
        return (grouped / scale.float()).round_().clamp_(-self.limit, self.limit), scale

    def _squared_error(self, q: Tensor, scale: Tensor, exact: Tensor) -> Tensor:
        """Return the squared error where one quantile is chosen: [R, K, 1], or one value per tensor."""
        error = (q * scale.float() - exact).square().sum(-1, keepdim=True)
        return error.sum() if self.one_clip else error

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        q, scale = self.quantize(weight)
        return self.store(q.flatten(1)[:, : as_matrix(weight).shape[1]], scale)

    def store(self, q: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Return the stored parts for integers [R, C] and scales [R, K, 1] from any method."""
        require_finite(scale)
        integers = q.to(torch.int8).contiguous()
        stored = integers if not self._dense(integers) else self._bits(integers)
        return {"": stored, "scale": scale[..., 0].contiguous()}

    def fake_quantize(self, weight: Tensor) -> Tensor:
        q, scale = self.quantize(weight)
        matrix = q.mul_(scale.float()).flatten(1)[:, : as_matrix(weight).shape[1]]
        return matrix.reshape(weight.shape).to(weight.dtype)

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "int",
            "bits": self.bits,
            "group": self.group,
            "scale_dtype": self.scale_dtype,
        }

    @staticmethod
    def unpack(spec: Mapping[str, Any], parts: Parts, shape: tuple[int, ...]) -> Tensor:
        bits, group = int(spec["bits"]), spec["group"]
        rows, columns = matrix_shape(shape)
        g = min(int(group), columns) if group else columns  # a file may name any number
        if not 2 <= bits <= 8 or g < 1:
            raise ValueError(f"bits={bits}, group={group}")
        stored, scale = parts[""], parts["scale"]
        groups = -(-columns // g)
        expect(scale, SCALES[spec["scale_dtype"]], (rows, groups))
        if stored.dtype == torch.int8:
            expect(stored, torch.int8, (rows, columns))
            q = stored.float()
        else:
            expect(stored, torch.uint8, (packed_bytes(rows * columns, bits),))
            integers = unpack(stored.numpy(), bits, rows * columns)
            q = torch.from_numpy(integers).view(rows, columns).float()
        spread = scale.float().repeat_interleave(g, dim=1)[:, :columns]
        return (q * spread).view(shape)

    def _grouped(self, matrix: Tensor) -> Tensor:
        R, C = matrix.shape
        g = self.group or C
        return (F.pad(matrix, (0, -C % g)) if C % g else matrix).reshape(R, -1, g)

    def _bits(self, integers: Tensor) -> Tensor:
        return torch.from_numpy(pack(integers.numpy().reshape(-1), self.bits))

    def _dense(self, integers: Tensor) -> bool:
        """Return whether packed bits are expected to compress at least as well as one integer per byte.

        Compressors code bytes. If whole integers fill a byte, packing only reduces the number of symbols; if
        integers straddle bytes, packing hides them (docs/log.md: 5.7 against 5.1 bits for int6).
        """
        if 8 % self.bits == 0:
            return self.bits < 8
        raw = integers.numpy().view(np.uint8).reshape(-1)
        dense = self._bits(integers).numpy()
        return entropy(dense) * len(dense) <= entropy(raw) * len(raw)


KINDS: dict[str, type[Format]] = {"cast": Cast, "float8": Float8, "int": Integer}
"""The package's own formats, by the name that an artifact has for them."""


def nothing_else(kind: str) -> type[Format]:
    """Find no format beside the package's own."""
    raise KeyError(kind)


def unpack_parts(
    spec: Mapping[str, Any],
    parts: Parts,
    shape: Sequence[int],
    find: Callable[[str], type[Format]] = nothing_else,
) -> Tensor:
    """Return the float32 tensor that the parts represent.

    Args:
        find: returns the class of a format that is none of `KINDS`, by its path.

    Raises:
        ValueError, KeyError, RuntimeError: spec and parts do not match a format or this shape.
    """
    kind = spec["kind"]
    made = KINDS[kind] if kind in KINDS else find(kind)
    return made.unpack(spec, parts, tuple(shape))


def _clips(values: Tensor, quantiles: Sequence[float]) -> list[Tensor]:
    """Return quantiles of |values| [..., C] over the last axis (kept), as `torch.quantile` defines them.

    They lie near the top, so `topk` is cheaper than a full sort.
    """
    if all(q == 1 for q in quantiles):
        return [values.abs().amax(-1, keepdim=True)] * len(quantiles)
    C = values.shape[-1]
    places = [(C - 1) * (1 - q) for q in quantiles]  # counted from the largest value
    top = values.abs().topk(min(C, 2 + int(max(places))), dim=-1).values
    found = []
    for place in places:
        above = top[..., int(place), None]
        below = top[..., min(int(place) + 1, C - 1), None]
        found.append(torch.lerp(above, below, place - int(place)))
    return found
