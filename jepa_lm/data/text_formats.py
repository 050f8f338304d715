"""Tell a text file's format by its first bytes, not by its name: plain, compressed, or not supported.

Compressed text is read as a stream: it is never whole in memory or on disk.
"""

from __future__ import annotations

import gzip
import io
import shlex
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from jepa_lm.utils.errors import UserError

HEAD = 4096
"""Bytes that are read to tell a file's format."""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
COMPRESSED = {GZIP: ("gzip", "gunzip"), ZSTD: ("zstd", "unzstd")}
MOST_EXPANDED, MOST_TIMES = 1 << 26, 100
"""Limits of compressed text: this many bytes, or this many times its file; prose shrinks to a third."""
ZSTD_INPUT = 1 << 10
"""Bytes unpacked at a time; they may expand to 32,000 times as many."""
TO_LINES = (
    "import pandas, sys; "
    "pandas.read_{}(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)"
)
NOT_READ = {
    b"PAR1": ("parquet", TO_LINES.format("parquet")),
    b"ARROW1": ("arrow", TO_LINES.format("feather")),
    b"BZh": ("bzip2", "bunzip2 -k"),
    b"\xfd7zXZ\0": ("xz", "unxz -k"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4 -k"),
    b"%PDF-": ("PDF", "pdftotext"),
}
TAR, TAR_AT = b"ustar", 257


def check_format(key: str, path: Path, head: bytes, in_folder: bool = False) -> None:
    """Refuse a file that is not text but can be converted to text.

    Args:
        key: the setting that named it. head: the first bytes of its text, unpacked.
        in_folder: the file is in a named folder and not named like a text file; `head` is then of the file
            itself.

    Raises:
        UserError: the message names the format and the command that converts it.
    """
    kinds = [
        n for start, n in NOT_READ.items() if head.startswith(start) and _really(start, path, head)
    ]
    if head[TAR_AT:].startswith(TAR):
        kinds.append(("tar", "tar xf"))
    if not in_folder:
        packed = [way for start, way in COMPRESSED.items() if head.startswith(start)]
        kinds += [(f"{name} within a compressed file", command) for name, command in packed]
    for name, command in kinds:
        then = ", and move it out of the folder" if in_folder else ""
        raise UserError(
            f"{key}={path}: {name} is not supported; convert it to text: {_way(path, command)}{then}"
        )


def _really(start: bytes, path: Path, head: bytes) -> bool:
    """Return whether a file has the format; a text may begin with the same letters."""
    if start == b"PAR1":
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4))
            return file.read() == b"PAR1"
    return start != b"BZh" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")


def _way(path: Path, command: str) -> str:
    if command.startswith("import"):
        words = (sys.executable, "-c", command, str(path), f"{path}.jsonl")
        return f"{shlex.join(words)} (after pip install pandas pyarrow)"
    return f"{command} {shlex.quote(str(path))}"


@contextmanager
def opened(key: str, path: Path) -> Iterator[BinaryIO]:
    """Open a file's text as bytes, unpacked if it is compressed.

    Raises:
        UserError: the compressed data is damaged, or expands too far.
    """
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        packed = next((magic for magic in COMPRESSED if start.startswith(magic)), None)
        if packed is None:
            yield file
            return
        chunks = _gunzipped(file) if packed == GZIP else _unzstd(file)
        most = max(MOST_EXPANDED, MOST_TIMES * path.stat().st_size)
        yield io.BufferedReader(_Unpacked(chunks, f"{key}={path}", COMPRESSED[packed], most))


class _Unpacked(io.RawIOBase):
    """A file made of chunks of bytes, with a limit on its length."""

    def __init__(
        self, chunks: Iterator[bytes], source: str, packing: tuple[str, str], most: int
    ) -> None:
        self._chunks, self._source, self._left, self._most = chunks, source, b"", most
        self._name, self._command = packing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            while not self._left and (chunk := next(self._chunks, None)) is not None:
                self._left = chunk
                self._most -= len(chunk)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise
            raise UserError(
                f"{self._source}: its {self._name} data is damaged or truncated; get the file again"
            ) from error
        if self._most < 0:
            raise UserError(
                f"{self._source}: unpacks to more than {MOST_TIMES} times its size; if that is intended, "
                f"unpack it yourself ({self._command})"
            )
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _gunzipped(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
        while chunk := unpacked.read(1 << 18):
            yield chunk


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack frame after frame. The library's own reader treats a truncated file as complete."""
    import zstandard

    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    try:
        while data := file.read(ZSTD_INPUT):
            while data:
                yield frame.decompress(data)
                begun, data = not frame.eof, frame.unused_data
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if begun:
        raise EOFError
