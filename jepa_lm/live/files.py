"""Files below one folder: a path that leads out of it, by `..` or by a link, is not there."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

OPEN = {".hydra"}
"""Hidden names that are shown; others, such as locks and half-written files, are not."""


class Shelf:
    """The folder whose files may be read.

    Args:
        root: an existing folder; it may itself be a link.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def find(self, name: str) -> Path:
        """Return the real path of a file or folder, named relative to the root with `/`.

        Raises:
            FileNotFoundError: it does not exist, is hidden, or lies outside.
        """
        parts = [part for part in name.split("/") if part]
        if "\0" in name or "\\" in name or any(map(_hidden, parts)):
            raise FileNotFoundError(name)
        try:
            path = self.root.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name too long
            raise FileNotFoundError(name) from error
        if not path.is_relative_to(self.root) or any(
            map(_hidden, path.relative_to(self.root).parts)
        ):
            raise FileNotFoundError(name)
        return path

    def has(self, name: str) -> bool:
        """Return whether there is such a file or folder inside."""
        try:
            self.find(name)
        except FileNotFoundError:
            return False
        return True

    def leads_out(self, path: Path) -> bool:
        """Return whether a path below the root exists but is really elsewhere, through a link."""
        try:
            return not path.resolve(strict=True).is_relative_to(self.root)
        except FileNotFoundError:
            return path.is_symlink()
        except (OSError, RuntimeError):
            return True

    def name(self, path: Path) -> str:
        """Return a path as it is named relative to the root, which itself has an empty name."""
        return "" if path == self.root else path.relative_to(self.root).as_posix()

    def listed(self, folder: Path) -> list[tuple[str, int | None]]:
        """Return names and bytes of what lies in a folder, sorted; None in place of bytes for folders.

        Raises:
            OSError: the folder cannot be read.
        """
        found: list[tuple[str, int | None]] = []
        for entry in os.scandir(folder):
            if _hidden(entry.name) or self.leads_out(Path(entry.path)):
                continue
            with suppress(OSError):  # it was removed meanwhile
                found.append((entry.name, None if entry.is_dir() else entry.stat().st_size))
        return sorted(found, key=lambda entry: (entry[1] is not None, entry[0]))


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading; never waits for a pipe, never follows a link.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(str(path))
    return open(descriptor, "rb")


def encoded(name: str) -> str:
    """Return a name in ASCII, as in addresses, whatever bytes are in it."""
    return quote(name, errors="surrogateescape")


def decoded(name: str) -> str:
    """Return the name that `encoded` was given."""
    return unquote(name, errors="surrogateescape")


def _hidden(part: str) -> bool:
    return part.startswith(".") and part not in OPEN
