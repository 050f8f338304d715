"""The challenge's shard files: a header of 256 little-endian int32, then uint16 tokens.

Header word 0 is MAGIC, word 1 the version, word 2 the number of tokens; the rest is zero. A shard is
read through a memory map, so a run over ten billion tokens holds none of them in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jepa_lm.errors import UserError

MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS
MAX_VOCAB = 1 << 16
"""Tokens are uint16."""


class ShardWriter:
    """Appends tokens to one shard file; the header is written on close. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = 0

    def __enter__(self) -> ShardWriter:
        self._file = open(self.path, "wb")
        self._file.write(bytes(HEADER_BYTES))
        return self

    def write(self, ids: Iterable[int] | np.ndarray) -> None:
        """Append ids, each in [0, 65535]."""
        array = np.asarray(ids, dtype="<u2")
        self._file.write(array.tobytes())
        self.tokens += len(array)

    def __exit__(self, *exc: object) -> None:
        header = np.zeros(HEADER_WORDS, dtype="<i4")
        header[:3] = MAGIC, VERSION, self.tokens
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.close()


def open_shard(path: Path) -> np.ndarray:
    """Memory-map a shard's tokens, [N] uint16, after checking its header and its length.

    Raises:
        UserError: no such file, not a shard, another version, empty, truncated or too long.
    """
    if not path.is_file():
        raise UserError(f"data: {path} does not exist; expected a shard file (.bin)")
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise UserError(
            f"data: {path} has {size} bytes, less than a shard's header of {HEADER_BYTES}; "
            "it is empty or truncated, download or build it again"
        )
    magic, version, tokens = (int(x) for x in np.fromfile(path, dtype="<i4", count=3))
    if magic != MAGIC or version != VERSION:
        raise UserError(
            f"data: {path} has a bad header (magic {magic}, version {version}); a shard starts with "
            f"{MAGIC}, {VERSION}"
        )
    expected = HEADER_BYTES + 2 * tokens
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise UserError(
            f"data: {path} is {what}: its header promises {tokens} tokens = {expected} bytes, the file "
            f"has {size}; download or build it again"
        )
    if tokens == 0:
        raise UserError(f"data: {path} holds no tokens; a shard needs at least one")
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(tokens,))


def check_token_ids(paths: Iterable[Path], vocab_size: int) -> None:
    """Read every token once and refuse ids >= vocab_size; files already read are remembered.

    The memory of what was checked lies beside the shards in `checked.json`, keyed by size and
    modification time, so a second run over 20 GB starts at once.
    """
    for path in paths:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, vocab_size]
        record = path.parent / "checked.json"
        known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if known.get(path.name) == stamp:
            continue
        tokens = open_shard(path)
        block = 1 << 24
        for start in range(0, len(tokens), block):
            largest = int(tokens[start : start + block].max())
            if largest >= vocab_size:
                where = start + int(np.argmax(tokens[start : start + block] >= vocab_size))
                raise UserError(
                    f"data: {path} holds token id {int(tokens[where])} at position {where}, but "
                    f"data.tokenizer.vocab_size={vocab_size}; choose the tokenizer the shards were "
                    "made with"
                )
        known[path.name] = stamp
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(record)


def without_special_ids(path: Path, first: int, folder: Path) -> Path:
    """A copy of a shard without the ids below `first`, the others moved down by it; made once.

    The copy's name holds the original's size and modification time, so a changed shard is read anew.

    Raises:
        UserError: the shard holds nothing else.
    """
    stat = path.stat()
    copy = folder / f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}.bin"
    if copy.is_file():
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    tokens, block = open_shard(path), 1 << 24
    temporary = copy.with_suffix(f".{os.getpid()}.tmp")
    with ShardWriter(temporary) as writer:
        for start in range(0, len(tokens), block):
            part = tokens[start : start + block]
            writer.write(part[part >= first] - first)
    if writer.tokens == 0:
        temporary.unlink()
        raise UserError(f"data: {path} holds nothing but ids below {first}")
    temporary.replace(copy)
    return copy
