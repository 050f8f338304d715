"""What general compressors reach on the same text, as context for a model's bits per byte."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import brotli
import numpy as np

from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.evaluation.bpb import decoded_documents
from jepa_lm.files import write_json


def split_text(stream: TokenStream, tokenizer: Tokenizer, limit: int) -> bytes:
    """The decoded text of a split, its first `limit` bytes at most."""
    tokens = np.empty(min(stream.total, limit), dtype=np.int64)
    stream.read(0, tokens)
    return b"".join(decoded_documents(tokens, tokenizer))[:limit]


def compressor_baselines(text: bytes, prefix: bytes) -> dict[str, float]:
    """Bits per byte of xz and brotli on `text`, alone and after having read `prefix`."""

    def bits(compressed: int) -> float:
        return 8 * compressed / len(text)

    def xz(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    def br(data: bytes) -> int:
        return len(brotli.compress(data, quality=11, lgwin=24))

    return {
        "xz": bits(xz(text)),
        "brotli": bits(br(text)),
        "xz after the training text": bits(xz(prefix + text) - xz(prefix)),
        "brotli after the training text": bits(br(prefix + text) - br(prefix)),
    }


def cached_baselines(text: bytes, prefix: bytes, cache_dir: Path) -> dict[str, float]:
    """`compressor_baselines`, remembered: brotli takes some 15 s over the embedded corpus."""
    key = hashlib.sha256(len(text).to_bytes(8, "little") + text + prefix).hexdigest()[:20]
    path = cache_dir / "baselines" / f"{key}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    found = compressor_baselines(text, prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found
