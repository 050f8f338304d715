"""Take artifacts apart, and forge artifacts with valid checksums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from jepa_lm.artifact import loading
from jepa_lm.artifact.codecs import compress
from jepa_lm.artifact.compression import Compressed
from jepa_lm.artifact.container import from_file, to_file


def unpack(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors and metadata of an artifact."""
    streams = from_file(path)
    tensors: dict[str, Any] = {}
    for stream in streams:
        tensors |= safetensors.torch.load(stream)
    return tensors, loading._metadata(streams[0])


def pack(tmp_path: Path, tensors: dict[str, Any], meta: Any) -> Path:
    """Write an artifact with valid checksums from any tensors and metadata."""
    return forge(tmp_path, safetensors.torch.save(tensors, {"jepa_lm": json.dumps(meta)}))


def forge(tmp_path: Path, *raw: bytes, promise: int | None = None) -> Path:
    """Write an artifact with valid checksums from any streams."""
    streams = [
        Compressed("zlib", compress("zlib", stream), promise or len(stream), {}) for stream in raw
    ]
    path = tmp_path / "artifact.test"
    path.write_bytes(to_file(streams))
    return path
