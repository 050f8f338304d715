"""Load a model from an artifact file strictly: no code in it is run, and everything is checked.

The metadata says how each tensor is stored; the shapes must be those of the model that the config builds.
A parameter `w` is stored as tensor `w` (its main part) plus `w::scale` and the like. The loaded weights must
match the hash that export recorded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from jepa_lm.artifact.container import READABLE, from_file
from jepa_lm.artifact.layout import from_planes
from jepa_lm.model import LanguageModel
from jepa_lm.model.checkpoint import empty_model, load_strictly
from jepa_lm.quantization.formats import Format, Parts, unpack_parts
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.quoting import cut, one_line
from jepa_lm.utils.trusted import Trust, check_part, find_class, plain

META_KEY = "jepa_lm"
PART = "::"
TOKENIZER = f"{PART}tokenizer"
"""Name of the tensor with the bytes of the serialized tokenizer."""
MAX_VALUES = 50 << 20
"""Limit on the number of weights in a model; see `container.MAX_BYTES`."""
MAX_HEADER = 4 << 20
"""Limit on the bytes of a stream's header. Parsed JSON takes many times its size in memory."""
META: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "data": dict,
    "eval": dict,
    "formats": dict,
    "planes": dict,
    "git": dict,
    "temperature": (int, float),
    "precision": str,
    "tokenizer": str,
    "weights_sha256": str,
    "seed": int,
    "steps": int,
}
"""Required keys of the metadata and their types."""


@dataclass(frozen=True)
class Loaded:
    """A loaded artifact."""

    model: LanguageModel
    meta: dict[str, Any]
    tokenizer: bytes | None
    """Serialized tokenizer; None if the file holds none."""


def load_artifact(path: Path, trust: Trust | None = None) -> Loaded:
    """Rebuild the inference model from the file alone.

    Args:
        trust: what the file may ask for; see `jepa_lm.utils.trusted`.

    Raises:
        UserError: the file is not an artifact, is damaged, has another version, holds tensors that do not
            match its model, or has data settings that are not allowed.
    """
    return _load(path, trust or Trust(), check_data=True)


def load_model(path: Path, trust: Trust | None = None) -> Loaded:
    """Load as `load_artifact` does, without checking the data settings: the caller brings its own text."""
    return _load(path, trust or Trust(), check_data=False)


def _load(path: Path, trust: Trust, *, check_data: bool) -> Loaded:
    streams = from_file(path)
    try:
        meta = _metadata(streams[0])
        if check_data:  # artifacts store no cache folder
            check_part("data", {**meta["data"], "cache_dir": ""}, "the file", trust)
        stored: dict[str, Tensor] = {}
        while streams:
            _header(streams[0])
            tensors = safetensors.torch.load(streams.pop(0))
            if twice := stored.keys() & tensors.keys():
                raise UserError(f"holds {sorted(twice)[0]} twice")
            stored |= tensors
        tokenizer = _tokenizer(stored.pop(TOKENIZER, None), meta["tokenizer"])
        parameters = len(meta["formats"])
        model = empty_model(meta["model"], parameters, "the file", trust, values=MAX_VALUES)
        load_strictly(model, _weights(model, meta, stored, trust), "the file")
    except UserError as error:
        raise UserError(f"artifact_path={path}: {cut(one_line(error), 240)}") from error
    except Exception as error:  # any failure in here is caused by the file
        raise UserError(
            f"artifact_path={path}: damaged artifact ({cut(one_line(error), 240)})"
        ) from error
    return Loaded(model.eval(), meta, tokenizer)


def _tokenizer(stored: Tensor | None, fingerprint: str) -> bytes | None:
    if stored is None:
        return None
    model = bytes(stored.numpy().data)
    if hashlib.sha256(model).hexdigest() != fingerprint:
        raise UserError("its tokenizer is not the one that the model was trained with")
    return model


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the float32 bytes of all weights, ordered by name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def compact_json(value: Any) -> str:
    """Return JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def _weights(
    model: nn.Module, meta: Mapping[str, Any], stored: dict[str, Tensor], trust: Trust
) -> dict[str, Tensor]:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    formats = meta["formats"]
    if formats.keys() != shapes.keys():
        odd = sorted(formats.keys() ^ shapes.keys())[0]
        raise UserError(f"its tensors do not match its model ({odd})")
    if unknown := {key.split(PART)[0] for key in stored} - shapes.keys():
        raise UserError(f"holds {sorted(unknown)[0]}, which has no format")
    for key, dtype in meta["planes"].items():
        stored[key] = from_planes(stored[key], dtype)
    weights = {
        name: unpack_parts(spec, _parts(stored, name), shapes[name], partial(_format, trust=trust))
        for name, spec in formats.items()
    }
    if weights_hash(weights) != meta["weights_sha256"]:
        raise UserError("its weights are not the exported ones (their SHA-256 differs)")
    return weights


def _format(kind: str, trust: Trust) -> type[Format]:
    """Return the class of a number format that is not the package's own.

    Raises:
        UserError: the user has not named its module with `trust`, or it is no format.
    """
    found: type[Format] = find_class("quantization", kind, trust)
    if not callable(getattr(found, "unpack", None)):
        raise UserError(f"{kind[:80]!r} is not a number format")
    return found


def _parts(stored: Mapping[str, Tensor], name: str) -> Parts:
    prefix = name + PART
    parts = {key[len(prefix) :]: t for key, t in stored.items() if key.startswith(prefix)}
    return {"": stored[name], **parts}


def _header(raw: bytes) -> bytes:
    """Return the JSON header of safetensors: 8 bytes of length, then the JSON."""
    length = int.from_bytes(raw[:8], "little")
    if length > min(MAX_HEADER, len(raw)):
        raise UserError(f"a header of {length} bytes exceeds the limit of {MAX_HEADER}")
    return raw[8 : 8 + length]


def _metadata(raw: bytes) -> dict[str, Any]:
    try:
        meta = plain(json.loads(json.loads(_header(raw))["__metadata__"][META_KEY]), "the file")
        version = meta["format_version"]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"no readable header ({cut(one_line(error), 240)})") from error
    if version not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise UserError(f"format version {version!r}, but this program reads {readable}")
    for key, kind in META.items():
        if not isinstance(meta.get(key), kind) or isinstance(meta[key], bool):
            raise UserError(f"its header has no usable {key!r}")
    stride = meta["eval"].get("stride")
    if not (isinstance(stride, int) and 0 < meta["temperature"] < math.inf):
        raise UserError("its header has no usable 'eval.stride' or 'temperature'")
    return meta
