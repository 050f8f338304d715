"""Files that are complete or not there, and JSON that was not written by us, read within bounds.

A file is written beside its name, under a name that no other process uses, forced to the disk and renamed: a
kill or a full disk leaves the earlier file as it was. What a killed process has left is swept up later.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BEING_WRITTEN = ".tmp"
MOST_JSON = 64 << 20
"""Bytes of a file of JSON that is read. In memory it takes many times as much."""
HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, open for writing; it takes the place of `path` when the block ends without an error.

    Raises:
        OSError: naming `path`, whose earlier contents are as they were.
    """
    # Short whatever the final name is: a file system allows 255 bytes.
    beside = path.with_name(f".{HOST}-{os.getpid()}-{secrets.token_hex(6)}{BEING_WRITTEN}")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        _remove(beside)
        if isinstance(error, OSError) and error.filename in (None, str(beside), beside):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole file in UTF-8, whatever the locale; half a surrogate pair becomes a question mark."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON that every reader takes: what is no number becomes null."""
    write_text(path, json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """The same plain value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    return [without_nan(entry) for entry in value] if isinstance(value, list | tuple) else value


def read_json(path: Path, most_bytes: int = MOST_JSON) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: it cannot be read. ValueError: it is too large, damaged, or nested too deeply.
    """
    if not path.is_file() and path.exists():
        raise ValueError("not a file")  # a folder, or a pipe that would never end
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or nothing that can be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sweep_up(folder: Path) -> None:
    """Remove what processes of this machine that are gone were writing in a folder."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f".{HOST}-*{BEING_WRITTEN}"):
            owner = path.name.split("-")[1]
            if owner.isdecimal() and not _lives(int(owner)):
                _remove(path)


def _lives(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
