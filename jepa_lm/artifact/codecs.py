"""Lossless codecs at their strongest settings: chunked compression and bounded decompression.

`python -m jepa_lm.artifact.codecs NAME BYTES` compresses stdin to stdout, so that codecs run in parallel and
can be stopped. This file imports nothing heavy, so that such a process starts quickly.
"""

from __future__ import annotations

import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import brotli
import zstandard

from jepa_lm.utils.errors import UserError

CHUNK = 1 << 20
_LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
LZMA_REACH = 1 << 26
"""Bytes that this preset looks back."""
DAMAGED = (lzma.LZMAError, zstandard.ZstdError, brotli.error, zlib.error, EOFError, ValueError)


def _lzma(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    reach = {"dict_size": min(max(size, 4096), LZMA_REACH)}
    stream = lzma.LZMACompressor(check=lzma.CHECK_CRC32, filters=[_LZMA | reach])
    yield from map(stream.compress, pieces)
    yield stream.flush()


def _zstd(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    stream = zstandard.ZstdCompressor(level=22).compressobj(size=size)
    yield from map(stream.compress, pieces)
    yield stream.flush()


def _brotli(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    stream = brotli.Compressor(quality=11, lgwin=24)
    yield from map(stream.process, pieces)
    yield stream.finish()


def _zlib(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    stream = zlib.compressobj(9)
    yield from map(stream.compress, pieces)
    yield stream.flush()


def _ans(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    from jepa_lm.artifact import ans

    yield ans.compress(b"".join(pieces))


COMPRESSORS: dict[str, Callable[[Iterable[bytes], int], Iterator[bytes]]] = {
    "brotli": _brotli,
    "lzma": _lzma,
    "zstd": _zstd,
    "ans": _ans,
    "zlib": _zlib,
}
"""Codecs by name, slowest first: (pieces, their bytes together) to the pieces of the stream.

Told how many bytes come, lzma and zstd take memory for these; zstd else takes 700 MB and most of a second.
"""
EXTENSIONS = {"lzma": "xz", "zstd": "zst", "brotli": "br", "ans": "ans", "zlib": "zlib"}


def pieces(raw: bytes) -> Iterator[bytes]:
    """Split the bytes into chunks."""
    return (raw[i : i + CHUNK] for i in range(0, len(raw), CHUNK))


def compress(codec: str, raw: bytes) -> bytes:
    """Compress `raw` in this process."""
    return b"".join(COMPRESSORS[codec](pieces(raw), len(raw)))


def decompress(codec: str, packed: bytes, size: int) -> bytes:
    """Undo `compress`, never holding much more than `size` bytes.

    Raises:
        UserError: the stream is malformed or does not unpack to exactly `size` bytes.
    """
    try:
        out = _DECOMPRESSORS[codec](packed, size + 1)
    except DAMAGED as error:
        raise UserError(f"its {codec} stream is damaged ({error})") from error
    if len(out) > size:
        raise UserError(f"holds more than the {size} bytes its header declares")
    if len(out) < size:
        raise UserError(f"holds {len(out)} bytes, but its header declares {size}; truncated?")
    return out


def _unzstd(packed: bytes, limit: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed) as reader:
        return reader.read(limit)


def _unans(packed: bytes, limit: int) -> bytes:
    from jepa_lm.artifact import ans

    if ans.promised(packed) > limit:
        return bytes(limit)  # `decompress` refuses this size, whatever the content
    return ans.decompress(packed)


_DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {
    "brotli": lambda packed, n: brotli.Decompressor().process(packed, output_buffer_limit=n),
    "lzma": lambda packed, n: lzma.LZMADecompressor(memlimit=1 << 28).decompress(packed, n),
    "zstd": _unzstd,
    "ans": _unans,
    "zlib": lambda packed, n: zlib.decompressobj().decompress(packed, n),
}
"""Decompressors by codec: (packed bytes, number of bytes to stop after)."""


def main(codec: str, size: int, source: BinaryIO, sink: BinaryIO) -> None:
    """Compress a stream as it arrives; write only at its end, so that the other side can write everything
    before it reads."""
    arriving = iter(lambda: source.read(CHUNK), b"")
    sink.write(b"".join(COMPRESSORS[codec](arriving, size)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
