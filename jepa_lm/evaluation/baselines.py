"""Bits per byte of general compressors on the same text, to compare a model's score with."""

from __future__ import annotations

import hashlib
import lzma
from contextlib import suppress
from pathlib import Path

import brotli

from jepa_lm.utils.files import read_object, sweep_up, write_json

ALONE = ("xz", "brotli")
AFTER = ("xz after the training text", "brotli after the training text")


def compressor_baselines(text: bytes, prefix: bytes) -> dict[str, float]:
    """Return the bits per byte of xz and brotli on `text`, alone and after `prefix` if there is one."""

    def bits(compressed: int) -> float:
        return 8 * compressed / len(text)

    def xz(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    def br(data: bytes) -> int:
        return len(brotli.compress(data, quality=11, lgwin=24))

    sizes = [xz(text), br(text)]
    if prefix:
        sizes += [xz(prefix + text) - xz(prefix), br(prefix + text) - br(prefix)]
    return dict(zip(_names(prefix), map(bits, sizes), strict=True))


def _names(prefix: bytes) -> tuple[str, ...]:
    return ALONE + AFTER if prefix else ALONE


def cached_baselines(text: bytes, prefix: bytes, cache_dir: Path) -> dict[str, float]:
    """Return `compressor_baselines` from a cache: brotli takes about 15 s over the embedded corpus.

    A damaged entry is computed again; a folder that is not writable is not used.
    """
    key = hashlib.sha256(len(text).to_bytes(8, "little") + text + prefix).hexdigest()[:20]
    path = cache_dir / "baselines" / f"{key}.json"
    known = read_object(path)
    if known.keys() == set(_names(prefix)) and all(
        isinstance(bits, float) for bits in known.values()
    ):
        return known
    found = compressor_baselines(text, prefix)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_up(path.parent)
        write_json(path, found)
    return found
