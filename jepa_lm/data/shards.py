"""The challenge's shard files: a header of 256 little-endian int32, then uint16 tokens.

Header word 0 is MAGIC, word 1 the version, word 2 the number of tokens; the rest is zero. A shard is
read through a memory map, so a run over ten billion tokens holds none of them in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import replacing, sweep_up

MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS
MAX_VOCAB = 1 << 16
"""Tokens are uint16."""
BLOCK = 1 << 24
"""Tokens checked at a time."""


class ShardWriter:
    """Context manager that appends tokens to a shard file, which gets its name once it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = 0

    def __enter__(self) -> ShardWriter:
        self._open = ExitStack()
        self._file = self._open.enter_context(replacing(self.path))
        self._file.write(bytes(HEADER_BYTES))
        return self

    def write(self, ids: Iterable[int] | np.ndarray) -> None:
        """Append ids, each in [0, 65535]."""
        array = np.asarray(ids, dtype="<u2")
        self._file.write(array.tobytes())
        self.tokens += len(array)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._open:
            if error is not None:
                raise error
            header = np.zeros(HEADER_WORDS, dtype="<i4")
            header[:3] = MAGIC, VERSION, self.tokens
            self._file.seek(0)
            self._file.write(header.tobytes())


def open_shard(path: Path) -> np.ndarray:
    """Check a shard's header and length, and memory-map its tokens, [N] uint16.

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


def check_token_ids(paths: Iterable[Path], vocab_size: int, notes: Path | None = None) -> None:
    """Check that every token id is below `vocab_size`.

    Args:
        notes: folder that records the checked shards, so that a second run over 20 GB starts at once. It
            holds an empty file for each version of a shard; the name is the record, so it cannot be damaged
            or half written. If None or not writable, everything is read.

    Raises:
        UserError: a shard holds an id that is too large.
    """
    for path in paths:
        note = notes / _version(path, vocab_size) if notes is not None else None
        if note is not None and os.path.exists(note):
            continue
        tokens = open_shard(path)
        for start in range(0, len(tokens), BLOCK):
            part = tokens[start : start + BLOCK]
            if int(part.max()) >= vocab_size:
                where = start + int(np.argmax(part >= vocab_size))
                raise UserError(
                    f"data: {path} holds token id {int(tokens[where])} at position {where}, but "
                    f"data.tokenizer.vocab_size={vocab_size}; choose the tokenizer the shards were "
                    "made with"
                )
        if note is not None:
            with contextlib.suppress(OSError):
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()


def without_special_ids(path: Path, first: int, folder: Path) -> Path:
    """Return a copy of a shard, made once, without the ids below `first` and with the others lowered by it.

    Raises:
        UserError: not a shard, or one that holds only ids below `first`.
    """
    tokens = open_shard(path)
    copy = folder / f"{_version(path, first)}.bin"
    with contextlib.suppress(UserError):  # missing or damaged
        open_shard(copy)
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    sweep_up(folder)
    with ShardWriter(copy) as writer:
        for start in range(0, len(tokens), BLOCK):
            part = tokens[start : start + BLOCK]
            writer.write(part[part >= first] - first)
        if writer.tokens == 0:
            raise UserError(f"data: {path} holds nothing but ids below {first}")
    return copy


def _version(path: Path, about: int) -> str:
    """Return a file name that identifies a shard, its version and the number `about`."""
    stat = path.stat()
    told = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, about]
    return hashlib.sha256(repr(told).encode()).hexdigest()
