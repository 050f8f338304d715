"""How the stored tensors lie in streams of bytes, before compression; nothing is lost here.

Tensors whose values take several bytes may be cut into byte planes (all first bytes, then all second bytes):
exponents are alike, low bits are noise, and a codec that reads bytes finds the likeness only when they lie
side by side. Tensors of different formats may lie in streams of their own, each with its own codec.
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
    """Refuse what is no way to lay out streams."""
    if name not in STREAMS:
        raise UserError(f"export.streams={name}: one of {', '.join(STREAMS)}")


def streams_of(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, str], layout: str
) -> list[dict[str, Tensor]]:
    """The tensors of each stream: one for all, or in `per_format` one for each kind of number.

    Args:
        kinds: what the numbers of each tensor are, by the tensor's name.
    """
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        groups[SINGLE if layout == SINGLE else kinds[name]][name] = tensor
    return list(groups.values())


def dtypes_worth_planes(tensors: Iterable[Tensor]) -> list[torch.dtype]:
    """The types whose tensors become smaller as byte planes, by LZMA on the first MiB or so of each."""
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
    """uint8 [bytes of a value, *shape] of a tensor."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat.view(*tensor.shape, tensor.element_size()).movedim(-1, 0).contiguous()


def from_planes(planes: Tensor, dtype: str) -> Tensor:
    """The tensor that the planes were cut from.

    Raises:
        ValueError, KeyError: they are not planes of that type.
    """
    kind = DTYPES[dtype]
    if planes.dtype != torch.uint8 or planes.ndim < 1 or len(planes) != kind.itemsize:
        raise ValueError(f"{tuple(planes.shape)} {planes.dtype} are no byte planes of {dtype}")
    return planes.movedim(0, -1).contiguous().reshape(-1).view(kind).view(planes.shape[1:])
