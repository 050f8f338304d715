"""One writer per folder: a second run or sweep in the same folder gets an error instead of mixing files.

The lock is the operating system's, so it ends with the process that holds it, even if that is killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from jepa_lm.utils.errors import UserError, warn

FILE = ".lock"
PATIENCE = 1.0
"""Seconds that a process waits before it reports what it is waiting for."""


@contextmanager
def only_writer(folder: Path, key: str) -> Iterator[None]:
    """Lock a folder, creating it if it is missing.

    Args:
        key: the setting that names the folder, for the message.

    Raises:
        UserError: another process holds the folder, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{key}={folder}: the folder cannot be created ({error.strerror})"
        ) from error
    lock = FileLock(folder / FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{key}={folder}: another process is writing there; wait until it has finished, or name "
            "another folder"
        ) from error
    except NotImplementedError:
        _warn_without_locks(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


@contextmanager
def taking_turns(file: Path, wait: bool = True) -> Iterator[bool]:
    """Acquire a file lock, waiting for its holder; without `wait`, yield False if it is taken."""
    # Members of a group may share a cache.
    lock, mine = FileLock(file, timeout=PATIENCE if wait else 0, mode=0o664), True
    try:
        lock.acquire()
    except Timeout:
        mine = wait
        if wait:
            warn(f"{file.parent}: another process is writing there; waiting for it")
            lock.acquire(timeout=-1)
    except NotImplementedError:
        _warn_without_locks(file.parent)
    try:
        yield mine
    finally:
        with suppress(OSError):
            lock.release()


def _warn_without_locks(folder: Path) -> None:
    warn(
        f"{folder}: this network disk does not support locks; do not let a second process write there"
    )
