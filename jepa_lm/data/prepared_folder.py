"""A folder of prepared data in the cache: whole and as it was written, or made again.

It is built beside its place, under a lock, and moved there when it is complete. `corpus.json` in it says
what else belongs there, so that a missing, cut or changed file is noticed when the folder is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import read_object, staging, sweep_up, write_json
from jepa_lm.utils.locks import taking_turns

MANIFEST = "corpus.json"
LOCKS = ".locks"
HASHED_BYTES = 1 << 28
"""Folders of up to this size are compared by content, which takes a second; larger ones by sizes."""


@dataclass(frozen=True)
class SourceText:
    """A split's text before it was cut into tokens.

    Args:
        bytes: of it. counted: bytes of its tokens by the tokenizer's table. sha256: of it.
    """

    bytes: int
    counted: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in a folder: each split's text, and the names of its files."""

    texts: dict[str, SourceText]
    files: list[str]


def write_manifest(folder: Path, texts: dict[str, SourceText]) -> None:
    """Say what belongs to a folder; the last thing that is written into it."""
    listed = {
        path.name: {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(folder.iterdir())
    }
    said = {"texts": {split: asdict(text) for split, text in texts.items()}, "files": listed}
    write_json(folder / MANIFEST, {**said, "checksum": _checksum(said)})


def read_manifest(folder: Path) -> Manifest | None:
    """What is in a folder; None where it is not there, not complete, or not as it was written."""
    said = read_object(folder / MANIFEST)
    try:
        if said.pop("checksum") != _checksum(said):
            return None
        small = sum(entry["bytes"] for entry in said["files"].values()) <= HASHED_BYTES
        for name, entry in said["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or (small and _hash(path) != entry["sha256"]):
                return None
        texts = {split: SourceText(**text) for split, text in said["texts"].items()}
        return Manifest(texts, sorted(said["files"]))
    except (OSError, KeyError):
        return None


@contextmanager
def place_to_build(folder: Path) -> Iterator[Path | None]:
    """An empty folder, which takes the place of `folder` when the block ends without an error.

    Waits for a process that builds the same; None where it is there by then.

    Raises:
        UserError: the cache is closed to the user. OSError: the disk is full.
    """
    with ExitStack() as stack:
        try:
            locks = folder.parent / LOCKS
            locks.mkdir(parents=True, exist_ok=True)
            stack.enter_context(taking_turns(locks / folder.name))
            if read_manifest(folder) is not None:
                yield None
                return
            sweep_up(folder.parent)  # what killed processes were building
            building = stack.enter_context(staging(folder.parent))
        except OSError as error:
            raise UserError(
                f"data.cache_dir: cannot write to {folder.parent} ({error.strerror}), and the data is not "
                "there whole; name another folder"
            ) from error
        new = building / "new"
        new.mkdir()
        yield new
        if (
            read_manifest(folder) is None
        ):  # on a disk without locks another process may have been first
            if folder.exists():
                folder.rename(building / "damaged")
            new.rename(folder)


def _checksum(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
