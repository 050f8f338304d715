"""The artifact file: a short header, then safetensors compressed by the best codec. No pickle.

    8 bytes  magic "JEPALM1\\0"
    8 bytes  codec name, ASCII, zero padded
    8 bytes  length of the uncompressed safetensors, little-endian
    rest     compressed safetensors

The safetensors metadata holds one JSON object: the format version, the resolved model and data
config, the tokenizer's fingerprint, and the stored format of every parameter. A parameter `w` is
stored as tensor `w` (its main part) and `w::scale` and the like; their shapes must be those of the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from hydra.utils import instantiate
from torch import Tensor

from jepa_lm.artifact.compression import COMPRESSORS, EXTENSIONS, compress_best, decompress
from jepa_lm.errors import UserError
from jepa_lm.model import LanguageModel
from jepa_lm.own_classes import require_own_classes
from jepa_lm.quantization.formats import Format, unpack_parts

MAGIC = b"JEPALM1\0"
HEADER = struct.Struct("<8s8sQ")
FORMAT_VERSION = 2
MAX_BYTES = 1 << 30
"""No artifact of this project comes near a GiB; a larger promise is a bomb."""
PART = "::"


@dataclass(frozen=True)
class Written:
    """An artifact on disk."""

    path: Path
    bytes: int
    codec: str
    compressors: dict[str, int]
    """Size that each codec reached, header included."""
    tensors: list[dict[str, Any]]
    """Per parameter: name, format, shape, and bytes before compression."""


@dataclass(frozen=True)
class Loaded:
    """An artifact read back."""

    model: LanguageModel
    meta: dict[str, Any]


def write_artifact(
    folder: Path,
    state: Mapping[str, Tensor],
    formats: Mapping[str, Format],
    meta: Mapping[str, Any],
) -> Written:
    """Pack, compress and write `artifact.<ext>` into a folder.

    Args:
        state: the inference model's parameters. formats: a format for each of them.
        meta: plain values; `model`, the resolved model config, is required to load.
    """
    tensors: dict[str, Tensor] = {}
    table = []
    for name, weight in state.items():
        parts = formats[name].pack(weight.detach().cpu())
        for part, tensor in parts.items():
            tensors[f"{name}{PART}{part}" if part else name] = tensor.contiguous()
        size = sum(t.numel() * t.element_size() for t in parts.values())
        table.append(
            {"name": name, "format": formats[name].name, "shape": list(weight.shape), "bytes": size}
        )
    header = {
        **meta,
        "format_version": FORMAT_VERSION,
        "formats": {name: formats[name].spec() for name in state},
    }
    raw = safetensors.torch.save(tensors, {"jepa_lm": json.dumps(header)})
    codec, packed, sizes = compress_best(raw)
    path = folder / f"artifact.{EXTENSIONS[codec]}"
    path.write_bytes(HEADER.pack(MAGIC, codec.encode(), len(raw)) + packed)
    compressors = {name: size + HEADER.size for name, size in sizes.items()}
    return Written(path, path.stat().st_size, codec, compressors, table)


def load_artifact(path: Path) -> Loaded:
    """Rebuild the inference model from a file and nothing else, strictly.

    Raises:
        UserError: not an artifact, damaged, of another version, or not the model's tensors.
    """
    raw = _read(path)
    meta = _metadata(raw, path)
    try:
        require_own_classes(meta["model"], "jepa_lm.model", f"artifact_path={path}")
        stored = safetensors.torch.load(raw)
        model = instantiate(meta["model"])
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if meta["formats"].keys() != shapes.keys():
            odd = sorted(meta["formats"].keys() ^ shapes.keys())[0]
            raise UserError(f"artifact_path={path}: its tensors are not those of its model ({odd})")
        state = {
            name: unpack_parts(spec, _parts(stored, name), shapes[name])
            for name, spec in meta["formats"].items()
        }
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"artifact_path={path}: damaged artifact ({_short(error)})") from error
    unknown = {name.split(PART)[0] for name in stored} - state.keys()
    if unknown:
        raise UserError(
            f"artifact_path={path}: holds {sorted(unknown)[0]}, which no format describes"
        )
    model.load_state_dict(state, strict=True)
    return Loaded(model.eval(), meta)


def _read(path: Path) -> bytes:
    """The decompressed safetensors."""
    if not path.is_file():
        raise UserError(f"artifact_path={path}: no such file; export.py writes artifact.<ext>")
    data = path.read_bytes()
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise UserError(f"artifact_path={path}: not an artifact of export.py (or an empty file)")
    _, codec_bytes, size = HEADER.unpack_from(data)
    codec = codec_bytes.rstrip(b"\0").decode("ascii", "replace")
    if codec not in COMPRESSORS:
        raise UserError(f"artifact_path={path}: unknown compression {codec!r}")
    if size > MAX_BYTES:
        raise UserError(f"artifact_path={path}: promises {size} bytes, more than {MAX_BYTES}")
    return decompress(codec, data[HEADER.size :], size)


def _metadata(raw: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in the safetensors header: 8 bytes of length, then JSON."""
    try:
        length = int.from_bytes(raw[:8], "little")
        meta = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["jepa_lm"])
        version = meta["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"artifact_path={path}: no readable header ({_short(error)})") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"artifact_path={path}: format version {version}, this program reads {FORMAT_VERSION}"
        )
    return meta


def _parts(stored: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = name + PART
    parts = {key[len(prefix) :]: t for key, t in stored.items() if key.startswith(prefix)}
    return {"": stored[name], **parts}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
