"""Atomic file writes, and bounded reads of JSON and YAML that may come from others.

A file is written under a temporary name that no other process uses, synced to disk and renamed: a kill or a
full disk leaves the earlier file intact. Leftovers of killed processes are removed later (`sweep_up`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from jepa_lm.utils.errors import UserError

BEING_WRITTEN = ".tmp"
MOST_JSON = 64 << 20
"""Maximum size of a JSON file, in bytes. In memory it takes many times as much."""
MOST_YAML, MOST_DEPTH = 1 << 16, 40
"""Maximum size in bytes and nesting depth of a YAML file; reading takes seconds per megabyte."""
EXITING = 0x4
"""PF_EXITING of the Linux kernel, in the flags of /proc/PID/stat."""
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for writing; it replaces `path` when the block ends without an error.

    Raises:
        OSError: names `path`, whose earlier contents are intact.
    """
    beside = _own_name(path.parent)
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


def _own_name(folder: Path) -> Path:
    """Return a path that no other process uses; short, because file systems allow names of 255 bytes."""
    return folder / f".{HOST}-{os.getpid()}-{secrets.token_hex(6)}{BEING_WRITTEN}"


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Create a hidden folder for files that belong together, until they are moved into `folder`.

    Errors about a file in it name the file's final path.
    """
    beside = _own_name(folder)
    beside.mkdir()
    try:
        with _named(beside, folder):
            yield beside
    finally:
        _remove(beside)


@contextmanager
def held(path: Path, folder: Path) -> Iterator[Path]:
    """Hold the file that is now at `path` under a second name, even if other processes replace `path`.

    The second name is in `folder` or, if that is on another disk, next to `path`. Errors name `path`.

    Raises:
        FileNotFoundError: the file is already gone.
    """
    second = _linked(path, folder) or _linked(path, path.parent)
    kept = second or _own_name(folder)
    try:
        if second is None:
            _copy(path, kept)
        with _named(kept, path):
            yield kept
    finally:
        _remove(kept)


def link_or_copy(path: Path, second: Path) -> None:
    """Give a file a second name as a hard link, or as a copy if the disk has no hard links."""
    try:
        os.link(path, second)
    except FileNotFoundError:
        raise
    except OSError:
        _copy(path, second)


def _linked(path: Path, folder: Path) -> Path | None:
    """Return a hard link to a file in a folder, or None if the disk does not allow one."""
    second = _own_name(folder)
    try:
        os.link(path, second)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    return second


def _copy(path: Path, second: Path) -> None:
    try:
        shutil.copyfile(path, second)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(second)) from error


@contextmanager
def _named(inside: Path, outside: Path) -> Iterator[None]:
    """Let errors name the path that the user knows (`outside`) instead of `inside`."""
    try:
        yield
    except UserError as error:
        if str(inside) not in str(error):
            raise
        raise type(error)(str(error).replace(str(inside), str(outside))) from error
    except OSError as error:
        if str(inside) not in str(error.filename):
            raise
        name = str(error.filename).replace(str(inside), str(outside))
        raise OSError(error.errno, error.strerror, name) from error


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file atomically; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole file in UTF-8 for any locale; a lone surrogate becomes a question mark."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write standard JSON: NaN and infinite values become null."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Return what `write_json` writes."""
    return json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """Return the value with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    return [without_nan(entry) for entry in value] if isinstance(value, list | tuple) else value


def read_json(path: Path, most_bytes: int = MOST_JSON) -> Any:
    """Return the contents of a JSON file.

    Raises:
        OSError: the file cannot be read. ValueError: it is too large, damaged, or nested too deeply.
    """
    return from_json(_bounded(path, most_bytes))


def from_json(data: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is damaged, or nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_yaml(path: Path, most_bytes: int = MOST_YAML) -> Any:
    """Return the contents of a YAML file: plain values, without aliases.

    Raises:
        OSError: the file cannot be read. ValueError: it is too large, damaged, nested too deeply, or uses
            aliases.
    """
    data, depth = _bounded(path, most_bytes), 0
    try:
        for event in yaml.parse(data, Loader=YAML):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("contains an alias")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ValueError("nested too deeply")
        return yaml.load(data, Loader=YAML)
    except (yaml.YAMLError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"not valid YAML ({type(error).__name__})") from error


def _bounded(path: Path, most_bytes: int) -> bytes:
    if not path.is_file() and path.exists():
        raise ValueError("not a file")  # a folder, or a pipe that might never end
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none or it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep_up(folder: Path) -> None:
    """Remove temporary files that dead processes of this machine left in a folder."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f".{HOST}-*{BEING_WRITTEN}"):
            owner = path.name.split("-")[1]
            if owner.isdecimal() and not _lives(int(owner)):
                _remove(path)


def _lives(process: int) -> bool:
    if os.name == "nt":  # on Windows, signal 0 would kill the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return not _is_exiting(process)


def _is_exiting(process: int) -> bool:
    """Return whether Linux still lists a process that has ended, or has begun to end.

    Its locks may be free already, and in a container that reaps no orphans it stays listed for ever.
    """
    try:
        told = Path(f"/proc/{process}/stat").read_bytes()
        state = told.rpartition(b")")[2].split()
        return state[0] in (b"Z", b"X") or bool(int(state[6]) & EXITING)
    except (OSError, ValueError, IndexError):
        return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
