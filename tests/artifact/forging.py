"""Artifacts taken apart, and forged ones with right checksums."""

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
    """Tensors and metadata of a file."""
    streams = from_file(path)
    tensors: dict[str, Any] = {}
    for stream in streams:
        tensors |= safetensors.torch.load(stream)
    return tensors, loading._metadata(streams[0])


def pack(tmp_path: Path, tensors: dict[str, Any], meta: Any) -> Path:
    """A file with right checksums of whatever it is given."""
    return forge(tmp_path, safetensors.torch.save(tensors, {"jepa_lm": json.dumps(meta)}))


def forge(tmp_path: Path, *raw: bytes, promise: int | None = None) -> Path:
    """A file of streams with right checksums, whatever the streams are."""
    streams = [
        Compressed("zlib", compress("zlib", stream), promise or len(stream), {}) for stream in raw
    ]
    path = tmp_path / "artifact.test"
    path.write_bytes(to_file(streams))
    return path
