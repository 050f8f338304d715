"""Bits per byte of general compressors on the same text, to compare a model's score with."""

from __future__ import annotations

import hashlib
import lzma
from contextlib import suppress
from pathlib import Path

import brotli
import numpy as np

from jepa_lm.data.corpora import ShardCorpus
from jepa_lm.data.token_data import TokenData
from jepa_lm.evaluation.byte_audit import decoded_documents
from jepa_lm.utils.files import read_object, sweep_up, write_json

NAMES = ("xz", "brotli", "xz after the training text", "brotli after the training text")


def split_text(data: TokenData, split: str, limit: int) -> bytes:
    """Return at most the first `limit` bytes of a split's text; decoded if only tokens are available."""
    if not isinstance(data.corpus, ShardCorpus):
        found = bytearray()
        for block in data.corpus.blocks(split):
            found += block.text.encode()
            if len(found) >= limit:
                break
        return bytes(found[:limit])
    stream = data.streams[split]
    tokens = np.empty(min(stream.total, limit), dtype=np.int64)
    stream.read(0, tokens)
    return b"".join(decoded_documents(tokens, data.tokenizer))[:limit]


def compressor_baselines(text: bytes, prefix: bytes) -> dict[str, float]:
    """Return the bits per byte of xz and brotli on `text`, alone and after reading `prefix`."""

    def bits(compressed: int) -> float:
        return 8 * compressed / len(text)

    def xz(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    def br(data: bytes) -> int:
        return len(brotli.compress(data, quality=11, lgwin=24))

    sizes = (xz(text), br(text), xz(prefix + text) - xz(prefix), br(prefix + text) - br(prefix))
    return dict(zip(NAMES, map(bits, sizes), strict=True))


def cached_baselines(text: bytes, prefix: bytes, cache_dir: Path) -> dict[str, float]:
    """Return `compressor_baselines` from a cache: brotli takes about 15 s over the embedded corpus.

    A damaged entry is computed again; a folder that is not writable is not used.
    """
    key = hashlib.sha256(len(text).to_bytes(8, "little") + text + prefix).hexdigest()[:20]
    path = cache_dir / "baselines" / f"{key}.json"
    known = read_object(path)
    if known.keys() == set(NAMES) and all(isinstance(bits, float) for bits in known.values()):
        return known
    found = compressor_baselines(text, prefix)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_up(path.parent)
        write_json(path, found)
    return found
