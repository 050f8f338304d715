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
from jepa_lm.artifact.loading import META_KEY, PART, TOKENIZER, compact_json, weights_hash
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
    """Codec of each stream of weights."""
    compressors: dict[str, int]
    """File size with each codec used for all streams."""
    tokenizer_bytes: int
    """Bytes that the tokenizer takes in the file, 0 if it holds none."""
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
    folder: Path,
    packed: Packed,
    meta: Mapping[str, Any],
    *,
    streams: str,
    codecs: Sequence[str],
    tokenizer: bytes | None = None,
) -> Written:
    """Compress a packed model and write `artifact.<ext>` to `folder`.

    Args:
        meta: plain values under the keys of `loading.META`.
        streams: stream layout, see `layout.streams_of`. codecs: names of the codecs to try.
        tokenizer: serialized tokenizer to store, if any.

    Raises:
        UserError: the model is larger than an artifact may be.
    """
    compressed = compress_model(packed, meta, streams=streams, codecs=codecs)
    largest = max(compressed, key=lambda stream: len(stream.data))
    words = _tokenizer_stream(tokenizer, codecs)
    every = compressed + words
    path = folder / f"artifact.{EXTENSIONS[largest.codec]}"
    data = to_file(every)
    write_bytes(path, data)
    outside, each = header_bytes(len(every)), header_bytes(1) - header_bytes(0)
    return Written(
        path=path,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(data).hexdigest(),
        codecs=[stream.codec for stream in compressed],
        compressors={c: outside + sum(s.sizes[c] for s in every) for c in codecs},
        tokenizer_bytes=sum(each + len(stream.data) for stream in words),
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


def tokenizer_sizes(tokenizer: bytes | None, codecs: Sequence[str]) -> dict[str, int]:
    """Return what a serialized tokenizer takes in an artifact by codec; nothing if there is none."""
    each = header_bytes(1) - header_bytes(0)
    words = _tokenizer_stream(tokenizer, codecs)
    return {codec: sum(each + stream.sizes[codec] for stream in words) for codec in codecs}


def _tokenizer_stream(tokenizer: bytes | None, codecs: Sequence[str]) -> list[Compressed]:
    if not tokenizer:
        return []
    words = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    return compress_best([safetensors.torch.save({TOKENIZER: words})], codecs)


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
