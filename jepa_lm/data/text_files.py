"""Reading a user's text files in blocks: UTF-8, line ends kept, memory bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jepa_lm.errors import UserError

BLOCK_BYTES = 1 << 20
"""Text is handed on in blocks of about this size."""
MAX_JSON_LINE = 1 << 26
"""A document of a .jsonl may have this many bytes."""
PLAIN_SUFFIXES = {".txt", ".md"}
JSON_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class TextFile:
    """The bytes [start, stop) of a file. `key` is the setting that named it, for messages."""

    key: str
    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes of text."""
        return self.stop - self.start

    def stamp(self) -> str:
        """Changes when the file or the part of it changes."""
        stat = self.path.stat()
        return f"{self.path.resolve()} {stat.st_size} {stat.st_mtime_ns} {self.start} {self.stop}"

    def cut(self, fraction: float) -> tuple[list[TextFile], list[TextFile]]:
        """Split in two after the line that ends past `fraction` of the bytes.

        A file without line ends is cut between two characters.
        """
        aim = self.start + int(fraction * self.size)
        with open(self.path, "rb") as file:
            file.seek(aim)
            rest = file.readline(BLOCK_BYTES)
            where = aim + len(rest)
            if not rest.endswith(b"\n") or where >= self.stop:
                # no line ends here: step over the continuation bytes of a character
                where = aim + next((i for i, b in enumerate(rest) if b & 0xC0 != 0x80), 0)
                if self.path.suffix == JSON_SUFFIX:
                    where = self._last_line_start()
        if not self.start < where < self.stop:
            raise UserError(
                f"{self.key}={self.path}: {self.size} bytes are too few to hold out a validation "
                "split; give more text or set data.val_path"
            )
        return [replace(self, stop=where)], [replace(self, start=where)]

    def _last_line_start(self) -> int:
        """Where the last line of the file begins."""
        with open(self.path, "rb") as file:
            file.seek(max(0, self.stop - MAX_JSON_LINE))
            tail = file.read(MAX_JSON_LINE).rstrip(b"\n")
        newline = tail.rfind(b"\n")
        return self.stop if newline < 0 else max(0, self.stop - MAX_JSON_LINE) + newline + 1

    def blocks(self) -> Iterator[tuple[str, bool]]:
        """(text, starts a document) in order."""
        if self.path.suffix == JSON_SUFFIX:
            yield from ((text, True) for text in self._json_documents())
        else:
            yield from self._plain_blocks()

    def _plain_blocks(self) -> Iterator[tuple[str, bool]]:
        first, carry, at = True, b"", self.start
        with open(self.path, "rb") as file:
            file.seek(self.start)
            while at < self.stop:
                data = carry + file.read(min(BLOCK_BYTES, self.stop - at))
                read_to = file.tell()
                cut = len(data) if read_to >= self.stop else _block_end(data)
                yield self._decode(data[:cut], at - len(carry)), first
                first, carry, at = False, data[cut:], read_to

    def _json_documents(self) -> Iterator[str]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            number = 0
            while file.tell() < self.stop and (line := file.readline(MAX_JSON_LINE)):
                number += 1
                where = f"{self.key}={self.path}: line {number} of this part"
                if len(line) == MAX_JSON_LINE:
                    raise UserError(
                        f"{where} is longer than {MAX_JSON_LINE} bytes; split the document"
                    )
                if not line.strip():
                    continue
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f'{where} is not a JSON object with a "text" field') from error
                if not isinstance(text, str):
                    raise UserError(f'{where}: "text" is {type(text).__name__}, expected a string')
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise UserError(
                        f"{where} holds half a surrogate pair, which is no text"
                    ) from error
                yield text

    def _decode(self, data: bytes, offset: int) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.key}={self.path}: not UTF-8 at byte {offset + error.start}; convert the file "
                "(for example with iconv) first"
            ) from error


def _block_end(data: bytes) -> int:
    """Where to cut: after the last line end, else before the last, perhaps unfinished, character."""
    newline = data.rfind(b"\n")
    if newline >= 0:
        return newline + 1
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:  # the first byte of a character
            return len(data) - back
    return len(data)


def text_files(key: str, path: Path) -> list[TextFile]:
    """The non-empty text files at a path, sorted by name; `key` names the setting in messages."""
    if not path.exists():
        raise UserError(f"{key}={path}: no such file or folder")
    if path.is_file():
        if path.stat().st_size == 0:
            raise UserError(f"{key}={path}: the file is empty; give a file with text")
        return [TextFile(key, path, 0, path.stat().st_size)]
    wanted = {*PLAIN_SUFFIXES, JSON_SUFFIX}
    found = [p for p in sorted(path.rglob("*")) if p.is_file() and p.suffix in wanted]
    files = [TextFile(key, p, 0, p.stat().st_size) for p in found if p.stat().st_size > 0]
    if not files:
        raise UserError(
            f"{key}={path}: holds no text; expected files ending in {', '.join(sorted(wanted))}"
        )
    return files
