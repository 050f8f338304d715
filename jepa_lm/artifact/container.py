"""The artifact file: streams of safetensors, each compressed by its best codec. No pickle.

    8 bytes  magic "JEPALM1\0"
    32 bytes SHA-256 of everything that follows
    4 bytes  number of streams, little-endian like all numbers here
    then of each stream
      8 bytes  codec name, ASCII, zero padded
      8 bytes  length of its safetensors
      8 bytes  length of these compressed
    then the compressed streams, one behind the other

The metadata of the first stream holds one JSON object; `loading` reads it, `writing` writes it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

from jepa_lm.artifact.codecs import COMPRESSORS, decompress
from jepa_lm.artifact.compression import Compressed
from jepa_lm.utils.errors import UserError

MAGIC = b"JEPALM1\0"
DIGEST = hashlib.sha256().digest_size
COUNT = struct.Struct("<I")
STREAM = struct.Struct("<8sQQ")
FORMAT_VERSION = 3
MAX_STREAMS = 16
MAX_BYTES = 192 << 20
"""Of all safetensors together: 50 million weights in float32. A larger promise is a bomb."""


def to_file(streams: Sequence[Compressed]) -> bytes:
    """The contents of the file."""
    body = COUNT.pack(len(streams))
    for stream in streams:
        body += STREAM.pack(stream.codec.encode(), stream.raw_bytes, len(stream.data))
    body += b"".join(stream.data for stream in streams)
    return MAGIC + hashlib.sha256(body).digest() + body


def header_bytes(streams: int) -> int:
    """Bytes of a file that are no stream."""
    return len(MAGIC) + DIGEST + COUNT.size + streams * STREAM.size


def from_file(path: Path) -> list[bytes]:
    """The safetensors of each stream.

    Raises:
        UserError: no artifact, damaged, or promising more than `MAX_BYTES`.
    """
    if not path.is_file():
        raise UserError(f"artifact_path={path}: no such file; export.py writes artifact.<ext>")
    if (size := path.stat().st_size) > MAX_BYTES + MAX_BYTES // 16:  # what does not compress grows
        raise UserError(
            f"artifact_path={path}: {size} bytes are no artifact, which has {MAX_BYTES} at most"
        )
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise UserError(f"artifact_path={path}: not an artifact of export.py (or an empty file)")
    digest, body = data[len(MAGIC) :][:DIGEST], data[len(MAGIC) + DIGEST :]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(
            f"artifact_path={path}: damaged or cut short (its SHA-256 is not the one it was written with)"
        )
    try:
        return _streams(body)
    except struct.error as error:
        raise UserError(f"artifact_path={path}: its table of streams is cut short") from error
    except UserError as error:
        raise UserError(f"artifact_path={path}: {error}") from error


def _streams(body: bytes) -> list[bytes]:
    (count,) = COUNT.unpack_from(body)
    if not 1 <= count <= MAX_STREAMS:
        raise UserError(f"{count} streams; 1 to {MAX_STREAMS} can be")
    table = [STREAM.unpack_from(body, COUNT.size + i * STREAM.size) for i in range(count)]
    promised, packed = (sum(column) for column in list(zip(*table, strict=True))[1:])
    at = COUNT.size + count * STREAM.size
    if promised > MAX_BYTES:
        raise UserError(f"promises {promised} bytes, more than {MAX_BYTES}")
    if packed != len(body) - at:
        raise UserError(f"holds {len(body) - at} bytes of streams, its table says {packed}")
    found = []
    for name, size, length in table:
        codec = name.rstrip(b"\0").decode("ascii", "replace")
        if codec not in COMPRESSORS:
            raise UserError(f"unknown compression {codec!r}")
        found.append(decompress(codec, body[at : at + length], size))
        at += length
    return found
