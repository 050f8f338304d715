"""Lossless layout of the stored tensors as streams of bytes, before compression.

Tensors with several bytes per value can be split into byte planes (all first bytes, then all second bytes):
exponents are similar, low bits are noise, and a byte codec finds the similarity only if the exponents are
adjacent. Each format can have a stream of its own, with its own codec.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from jepa_lm.artifact.codecs import compress
from jepa_lm.utils.errors import UserError

SINGLE, PER_FORMAT = "single", "per_format"
STREAMS = (SINGLE, PER_FORMAT)
SAMPLE = 1 << 20
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32)}


def check_streams(name: str) -> None:
    """Check that `name` is a stream layout."""
    if name not in STREAMS:
        raise UserError(f"export.streams={name}: one of {', '.join(STREAMS)}")


def streams_of(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, str], layout: str
) -> list[dict[str, Tensor]]:
    """Return the tensors of each stream: one stream for all, or with `per_format` one per kind of number.

    Args:
        kinds: kind of number of each tensor, by tensor name.
    """
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        groups[SINGLE if layout == SINGLE else kinds[name]][name] = tensor
    return list(groups.values())


def dtypes_worth_planes(tensors: Iterable[Tensor]) -> list[torch.dtype]:
    """Return the dtypes that compress better as byte planes, by LZMA on about the first MiB of each."""
    by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        found = by_dtype[tensor.dtype]
        if tensor.dtype in DTYPES.values() and sum(t.nbytes for t in found) < SAMPLE:
            found.append(tensor)

    def size(parts: Iterable[Tensor]) -> int:
        flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in parts]
        return len(compress("lzma", torch.cat(flat).numpy().tobytes()))

    return [
        dtype
        for dtype, found in by_dtype.items()
        if found and size(map(to_planes, found)) < size(found)
    ]


def to_planes(tensor: Tensor) -> Tensor:
    """Split a tensor into byte planes, uint8 [bytes per value, *shape]."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat.view(*tensor.shape, tensor.element_size()).movedim(-1, 0).contiguous()


def from_planes(planes: Tensor, dtype: str) -> Tensor:
    """Rebuild the tensor from its byte planes.

    Raises:
        ValueError, KeyError: the planes do not match the dtype.
    """
    kind = DTYPES[dtype]
    if planes.dtype != torch.uint8 or planes.ndim < 1 or len(planes) != kind.itemsize:
        raise ValueError(f"{tuple(planes.shape)} {planes.dtype} are not byte planes of {dtype}")
    return planes.movedim(0, -1).contiguous().reshape(-1).view(kind).view(planes.shape[1:])
