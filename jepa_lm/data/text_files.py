"""Read a user's text files in blocks: UTF-8, line ends kept, memory bounded."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from jepa_lm.data.documents import Block
from jepa_lm.data.text_formats import HEAD, opened
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import sha256_of

T = TypeVar("T")
BLOCK_BYTES = 1 << 20
"""Approximate size of a block of text."""
MAX_JSON_LINE = 1 << 25
"""Most bytes of a document of a .jsonl file."""
PLAIN = {".txt", ".md"}
JSON_LINES = {".jsonl", ".ndjson"}
PACKED = {".gz", ".zst"}


def suffix(path: Path) -> str:
    """Return a file name's suffix in lower case, without the suffix for compression."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in PACKED else name.suffix


@dataclass(frozen=True)
class TextFile:
    """The bytes [start, stop) of a file's text, to its end if `stop` is None.

    `key` is the setting that named the file, for messages; `json` means that each line is a document.
    """

    key: str
    path: Path
    json: bool = False
    start: int = 0
    stop: int | None = None

    @property
    def size(self) -> int:
        """Bytes of text; a compressed file is read to count them."""
        stop = _length(self.key, _version(self.path)) if self.stop is None else self.stop
        return stop - self.start

    def split(self, where: int) -> tuple[TextFile, TextFile]:
        """Return the parts before byte `where` of the file, and from it on."""
        return replace(self, stop=where), replace(self, start=where)

    def stamp(self, hashed: bool) -> str:
        """Return a hash of the file, or of its ends with its size and time; changes when the text changes."""
        version = _version(self.path)
        return f"{_digest(version) if hashed else _sampled(version)} {self.json}"

    def same_bytes(self, other: TextFile) -> bool:
        """Return whether the two are the same file or have the same bytes."""
        mine, theirs = _version(self.path), _version(other.path)
        if os.path.samefile(self.path, other.path):
            return True
        return mine[1] == theirs[1] and _digest(mine) == _digest(theirs)

    def head(self) -> bytes:
        """Return the first bytes of the text."""
        with opened(self.key, self.path) as file:
            return file.read(HEAD)

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """Open the text at `start`."""
        with opened(self.key, self.path) as file:
            if file.seekable():
                file.seek(self.start)
            else:
                left = self.start
                while left and (skipped := file.read(min(BLOCK_BYTES, left))):
                    left -= len(skipped)
            yield file

    def chunks(self) -> Iterator[bytes]:
        """Yield the text in order, in pieces of up to `BLOCK_BYTES`."""
        with self.reading() as file:
            left = sys.maxsize if self.stop is None else self.stop - self.start
            while data := file.read(min(BLOCK_BYTES, left)):
                yield data
                left -= len(data)

    def blocks(self) -> Iterator[Block]:
        """Yield the documents in order."""
        return self._json_documents() if self.json else self._plain_blocks()

    def _plain_blocks(self) -> Iterator[Block]:
        first, carry, at = True, b"", self.start
        for chunk in self.chunks():
            data = carry + chunk
            cut = _block_end(data)
            yield Block(self._decode(data[:cut], at), first)
            first, carry, at = False, data[cut:], at + cut
        if carry:
            yield Block(self._decode(carry, at), first)

    def _json_documents(self) -> Iterator[Block]:
        return (Block(text, True) for text in self.lines(_document))

    def lines(self, read: Callable[[bytes], T]) -> Iterator[T]:
        """Yield what `read` makes of each line that is not blank.

        Raises:
            UserError: a line is too long, or `read` raised ValueError; the message names file and line.
        """
        with self.reading() as file:
            at = self.start
            while (self.stop is None or at < self.stop) and (line := file.readline(MAX_JSON_LINE)):
                try:
                    if len(line) == MAX_JSON_LINE:
                        raise ValueError(
                            f"is longer than {MAX_JSON_LINE} bytes; split the document"
                        )
                    if line.strip():
                        yield read(line)
                except ValueError as error:
                    number = 1 + sum(
                        c.count(b"\n") for c in replace(self, start=0, stop=at).chunks()
                    )
                    raise UserError(f"{self.key}={self.path}: line {number} {error}") from error
                at += len(line)

    def _decode(self, data: bytes, offset: int) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.key}={self.path}: not UTF-8 at byte {offset + error.start}; convert the file "
                "(for example with iconv) first"
            ) from error


def check_first_document(file: TextFile, head: bytes) -> None:
    """Check the first document of JSON lines, unless it is longer than `head`, the first bytes of the text.

    Raises:
        UserError: the line is not a JSON object with a text.
    """
    lines = head.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            if number < len(lines) or len(head) < HEAD:
                try:
                    _document(line)
                except ValueError as error:
                    raise UserError(f"{file.key}={file.path}: line {number} {error}") from error
            return


def _document(line: bytes) -> str:
    """Return the text of a line of JSON.

    Raises:
        ValueError: the line is not a JSON object with a text; the message says why.
    """
    expected = 'is not a JSON object with a "text" field'
    try:
        found = json.loads(line)
        text = found["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, KeyError) and (texts := text_fields(found)):
            raise ValueError(
                f"{expected}, but has {', '.join(texts)}; {_renamed(texts[0])} renames one"
            ) from error
        raise ValueError(
            f'{expected}; each line must be one, such as {{"text": "..."}} '
            "(jq -c .[] FILE converts a list, jq -c . FILE an object that spans several lines)"
        ) from error
    if not isinstance(text, str):
        raise ValueError(f'has a "text" that is {type(text).__name__}, expected a string')
    encoded(text)
    return text


def encoded(text: str) -> bytes:
    """Return a text of a line of JSON in UTF-8.

    Raises:
        ValueError: it is not valid text.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half a surrogate pair, which is not valid text") from error


def text_fields(found: dict[str, object]) -> list[str]:
    """Return the names of the fields that hold text, the longest text first."""
    lengths = {key: len(value) for key, value in found.items() if isinstance(value, str)}
    return sorted(filter(str.isidentifier, lengths), key=lengths.__getitem__, reverse=True)


def _renamed(name: str) -> str:
    return f"jq -c '{{text: .{name}}}' FILE"


def holds_documents(head: bytes) -> bool:
    """Return whether a file that begins with `head` has a JSON object with a text on each line."""
    line = head.lstrip().partition(b"\n")[0]
    if len(line) >= HEAD // 2:  # a long document, whose line may be cut: its start decides
        return line.startswith(b"{") and b'"text"' in line
    try:
        return isinstance(json.loads(line)["text"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _block_end(data: bytes) -> int:
    """Return where to cut: after the last line end, else before the last, perhaps incomplete, character."""
    newline = data.rfind(b"\n")
    if newline >= 0:
        return newline + 1
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:  # the first byte of a character
            return len(data) - back
    return len(data)


Version = tuple[Path, int, int, int, int]


def _version(path: Path) -> Version:
    """Return what distinguishes a file from an earlier one of the same name, within one process."""
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@cache
def _length(key: str, version: Version) -> int:
    with opened(key, version[0]) as file:
        if file.seekable():
            return file.seek(0, os.SEEK_END)
        return sum(len(chunk) for chunk in iter(lambda: file.read(BLOCK_BYTES), b""))


@cache
def _digest(version: Version) -> str:
    return sha256_of(version[0])


def _sampled(version: Version) -> str:
    path, size, changed, _, _ = version
    with open(path, "rb") as file:
        ends = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        ends += file.read(1 << 16)
    return f"{size} {changed} {hashlib.sha256(ends).hexdigest()}"
