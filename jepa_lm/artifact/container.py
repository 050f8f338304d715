"""The artifact file: streams of safetensors, each compressed with its best codec. No pickle.

    8 bytes  magic "JEPALM1\0"
    32 bytes SHA-256 of everything that follows
    4 bytes  number of streams, little-endian like all numbers here
    then for each stream
      8 bytes  codec name, ASCII, zero-padded
      8 bytes  length of the safetensors before compression
      8 bytes  length after compression
    then the compressed streams, concatenated

The metadata of the first stream holds one JSON object, written by `writing` and read by `loading`. The
tokenizer is a tensor of bytes in a stream of its own, the last.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.compression import Compressed
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import program

MAGIC = b"JEPALM1\0"
DIGEST = hashlib.sha256().digest_size
COUNT = struct.Struct("<I")
STREAM = struct.Struct("<8sQQ")
FORMAT_VERSION = 4
READABLE = (3, 4)
"""Version 3 holds no tokenizer."""
MAX_STREAMS = 16
MAX_BYTES = 192 << 20
"""Limit on all safetensors together: 50 million weights in float32. A larger file is a decompression bomb."""
MAX_FILE = MAX_BYTES + MAX_BYTES // 16
"""Limit on the file: incompressible data grows a little."""


def to_file(streams: Sequence[Compressed]) -> bytes:
    """Return the contents of the artifact file."""
    body = COUNT.pack(len(streams))
    for stream in streams:
        body += STREAM.pack(stream.codec.encode(), stream.raw_bytes, len(stream.data))
    body += b"".join(stream.data for stream in streams)
    return MAGIC + hashlib.sha256(body).digest() + body


def header_bytes(streams: int) -> int:
    """Return the size of the header: every byte that is not stream data."""
    return len(MAGIC) + DIGEST + COUNT.size + streams * STREAM.size


def from_file(path: Path) -> list[bytes]:
    """Return the safetensors bytes of each stream.

    Raises:
        UserError: the file is not an artifact, is damaged, or would unpack to more than `MAX_BYTES`.
    """
    streams = packed_streams(path)
    try:
        return [stream.unpacked() for stream in streams]
    except UserError as error:
        raise UserError(f"artifact_path={path}: {error}") from error


def packed_streams(path: Path) -> list[Compressed]:
    """Return the streams as they are stored.

    Raises:
        UserError: see `from_file`.
    """
    if not path.is_file():
        raise UserError(
            f"artifact_path={path}: no such file; {program('export')} writes artifact.<ext>"
        )
    if (size := path.stat().st_size) > MAX_FILE:
        raise UserError(
            f"artifact_path={path}: {size} bytes is too large for an artifact; at most {MAX_BYTES}"
        )
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise UserError(
            f"artifact_path={path}: not an artifact of {program('export')}, or an empty file"
        )
    digest, body = data[len(MAGIC) :][:DIGEST], data[len(MAGIC) + DIGEST :]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(
            f"artifact_path={path}: damaged or truncated (its SHA-256 does not match the one it stores)"
        )
    try:
        return _streams(body)
    except struct.error as error:
        raise UserError(f"artifact_path={path}: its stream table is truncated") from error
    except UserError as error:
        raise UserError(f"artifact_path={path}: {error}") from error


def _streams(body: bytes) -> list[Compressed]:
    (count,) = COUNT.unpack_from(body)
    if not 1 <= count <= MAX_STREAMS:
        raise UserError(f"{count} streams; must be 1 to {MAX_STREAMS}")
    table = [STREAM.unpack_from(body, COUNT.size + i * STREAM.size) for i in range(count)]
    promised, packed = (sum(column) for column in list(zip(*table, strict=True))[1:])
    at = COUNT.size + count * STREAM.size
    if promised > MAX_BYTES:
        raise UserError(f"declares {promised} bytes, more than {MAX_BYTES}")
    if packed != len(body) - at:
        raise UserError(f"holds {len(body) - at} bytes of streams, but its table says {packed}")
    found = []
    for name, size, length in table:
        codec = name.rstrip(b"\0").decode("ascii", "replace")
        if codec not in COMPRESSORS:
            raise UserError(f"unknown compression {codec!r}")
        found.append(Compressed(codec, body[at : at + length], size, {}))
        at += length
    return found
