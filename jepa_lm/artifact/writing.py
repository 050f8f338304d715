"""Pack a model, compress it and write the artifact file."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from jepa_lm.artifact import layout
from jepa_lm.artifact.codecs import EXTENSIONS
from jepa_lm.artifact.compression import Compressed, compress_best
from jepa_lm.artifact.container import FORMAT_VERSION, MAX_BYTES, header_bytes, to_file
from jepa_lm.artifact.loading import META_KEY, PART, compact_json, weights_hash
from jepa_lm.model import LanguageModel
from jepa_lm.quantization.formats import Format, Parts
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import write_bytes


@dataclass(frozen=True)
class Packed:
    """A packed model before compression."""

    shapes: Mapping[str, Sequence[int]]
    formats: Mapping[str, Format]
    parts: Mapping[str, Parts]
    """Stored parts by parameter name, as its format packed them."""

    def weights(self) -> dict[str, Tensor]:
        """Return the float32 weights that loading will restore."""
        return {
            name: self.formats[name].unpack(
                self.formats[name].spec(), parts, tuple(self.shapes[name])
            )
            for name, parts in self.parts.items()
        }

    def restored(self, model: LanguageModel) -> LanguageModel:
        """Return a copy of the model with these weights."""
        copied = copy.deepcopy(model)
        copied.load_state_dict(self.weights(), strict=True)
        return copied


@dataclass(frozen=True)
class Written:
    """An artifact on disk."""

    path: Path
    bytes: int
    sha256: str
    """SHA-256 of the file, as `sha256sum` prints it."""
    codecs: list[str]
    """Codec of each stream."""
    compressors: dict[str, int]
    """File size with each codec used for all streams."""
    tensors: list[dict[str, Any]]
    """Name, format, shape, number of values, and bytes before compression of each parameter."""


def pack_model(model: torch.nn.Module, formats: Mapping[str, Format]) -> Packed:
    """Pack every parameter with its format."""
    weights = {name: p.detach().cpu() for name, p in model.named_parameters()}
    return Packed(
        shapes={name: tuple(w.shape) for name, w in weights.items()},
        formats=formats,
        parts={name: formats[name].pack(w) for name, w in weights.items()},
    )


def write_artifact(
    folder: Path, packed: Packed, meta: Mapping[str, Any], *, streams: str, codecs: Sequence[str]
) -> Written:
    """Compress a packed model and write `artifact.<ext>` to `folder`.

    Args:
        meta: plain values under the keys of `loading.META`.
        streams: stream layout, see `layout.streams_of`. codecs: names of the codecs to try.

    Raises:
        UserError: the model is larger than an artifact may be.
    """
    compressed = compress_model(packed, meta, streams=streams, codecs=codecs)
    largest = max(compressed, key=lambda stream: len(stream.data))
    path = folder / f"artifact.{EXTENSIONS[largest.codec]}"
    data = to_file(compressed)
    write_bytes(path, data)
    outside = header_bytes(len(compressed))
    return Written(
        path=path,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(data).hexdigest(),
        codecs=[stream.codec for stream in compressed],
        compressors={c: outside + sum(stream.sizes[c] for stream in compressed) for c in codecs},
        tensors=[
            {
                "name": name,
                "format": packed.formats[name].name,
                "shape": list(packed.shapes[name]),
                "values": math.prod(packed.shapes[name]),
                "bytes": sum(t.numel() * t.element_size() for t in parts.values()),
            }
            for name, parts in packed.parts.items()
        ],
    )


def compress_model(
    packed: Packed, meta: Mapping[str, Any], *, streams: str, codecs: Sequence[str]
) -> list[Compressed]:
    """Lay out the artifact's streams and compress them."""
    raw = to_streams(packed, meta, streams)
    total = sum(map(len, raw))
    if total > MAX_BYTES:
        raise UserError(
            f"export: {total} bytes before compression, more than the {MAX_BYTES} allowed in an artifact; "
            "choose a quantization with fewer bits"
        )
    return compress_best(raw, codecs)


def to_streams(packed: Packed, meta: Mapping[str, Any], streams: str) -> list[bytes]:
    """Return each stream as safetensors bytes; the first one also holds the metadata."""
    tensors, kinds = {}, {}
    for name, parts in packed.parts.items():
        for part, tensor in parts.items():
            key = f"{name}{PART}{part}" if part else name
            tensors[key], kinds[key] = tensor.contiguous(), part or packed.formats[name].name
    planes = {
        key: str(tensor.dtype).removeprefix("torch.")
        for dtype in layout.dtypes_worth_planes(tensors.values())
        for key, tensor in tensors.items()
        if tensor.dtype == dtype
    }
    header = {
        **meta,
        "format_version": FORMAT_VERSION,
        "formats": {name: kind.spec() for name, kind in packed.formats.items()},
        "planes": planes,
        "weights_sha256": weights_hash(packed.weights()),
    }
    found = []
    for i, members in enumerate(layout.streams_of(tensors, kinds, streams)):
        laid = {k: layout.to_planes(t) if k in planes else t for k, t in members.items()}
        note = None if i else {META_KEY: compact_json(header)}
        found.append(safetensors.torch.save(laid, note))
    return found
