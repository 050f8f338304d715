"""Lossless compression by the best of LZMA, zstd, brotli and zlib; bounded decompression."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import brotli
import zstandard

from jepa_lm.errors import UserError

CHUNK = 1 << 20
_LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "lzma": lambda raw: lzma.compress(raw, check=lzma.CHECK_CRC32, filters=_LZMA_FILTERS),
    "zstd": lambda raw: zstandard.ZstdCompressor(level=22).compress(raw),
    "brotli": lambda raw: brotli.compress(raw, quality=11, lgwin=24),
    "zlib": lambda raw: zlib.compress(raw, 9),
}
EXTENSIONS = {"lzma": "xz", "zstd": "zst", "brotli": "br", "zlib": "zlib"}


def compress_best(raw: bytes) -> tuple[str, bytes, dict[str, int]]:
    """Compress with every codec at once (they release the interpreter lock).

    Returns:
        The smallest one's name and bytes, and the size that each codec reached.
    """
    with ThreadPoolExecutor(len(COMPRESSORS)) as pool:
        packed = dict(
            zip(COMPRESSORS, pool.map(lambda f: f(raw), COMPRESSORS.values()), strict=True)
        )
    sizes = {name: len(data) for name, data in packed.items()}
    best = min(sizes, key=sizes.__getitem__)
    return best, packed[best], sizes


def decompress(codec: str, packed: bytes, size: int) -> bytes:
    """Undo `compress_best`, never holding more than `size` bytes and one chunk.

    Raises:
        UserError: malformed, or not exactly `size` bytes.
    """
    out = bytearray()
    try:
        for piece in _PIECES[codec](packed):
            out += piece
            if len(out) > size:
                raise UserError(f"artifact: holds more than the {size} bytes its header promises")
    except (lzma.LZMAError, zstandard.ZstdError, brotli.error, zlib.error, EOFError) as error:
        raise UserError(f"artifact: its {codec} stream is damaged ({error})") from error
    if len(out) != size:
        raise UserError(f"artifact: holds {len(out)} bytes, its header promises {size}; truncated?")
    return bytes(out)


def _lzma_pieces(packed: bytes) -> Iterator[bytes]:
    stream = lzma.LZMADecompressor(memlimit=1 << 28)
    yield stream.decompress(packed, max_length=CHUNK)
    while not stream.eof and not stream.needs_input:
        yield stream.decompress(b"", max_length=CHUNK)


def _zlib_pieces(packed: bytes) -> Iterator[bytes]:
    stream = zlib.decompressobj()
    yield stream.decompress(packed, CHUNK)
    while stream.unconsumed_tail:
        yield stream.decompress(stream.unconsumed_tail, CHUNK)
    yield stream.flush()


def _zstd_pieces(packed: bytes) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed) as reader:
        while piece := reader.read(CHUNK):
            yield piece


def _brotli_pieces(packed: bytes) -> Iterator[bytes]:
    stream = brotli.Decompressor()
    yield stream.process(packed, output_buffer_limit=CHUNK)
    while not stream.is_finished():
        piece = stream.process(b"", output_buffer_limit=CHUNK)
        if not piece:
            return
        yield piece


_PIECES = {
    "lzma": _lzma_pieces,
    "zstd": _zstd_pieces,
    "brotli": _brotli_pieces,
    "zlib": _zlib_pieces,
}
