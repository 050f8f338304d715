"""One writer a folder: a second run or sweep in the same place is told so instead of mixing its files in.

The lock is the operating system's, so that it ends with the process that holds it, however that goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from jepa_lm.utils.errors import UserError, warn

FILE = ".lock"
PATIENCE = 1.0
"""Seconds of waiting before a process says what it waits for."""


@contextmanager
def only_writer(folder: Path, key: str) -> Iterator[None]:
    """Hold a folder, which is made where it is missing.

    Args:
        key: the setting that names the folder, for the message.

    Raises:
        UserError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{key}={folder}: no folder can be made there ({error.strerror})"
        ) from error
    lock = FileLock(folder / FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{key}={folder}: another process is writing there; wait until it is through, or name "
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
    """Hold a file's lock, once whoever has it is through; without `wait`, false where somebody has it."""
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
    warn(f"{folder}: this disk, of a network, knows no locks; let no second process write there")
