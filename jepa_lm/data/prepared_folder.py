"""A folder of prepared data in the cache: complete and unchanged, or built again.

It is built next to its final place, under a lock, and moved there when complete. Its `corpus.json` lists the
other files, so that a missing, truncated or changed file is noticed when the folder is opened.
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
from jepa_lm.utils.files import read_object, sha256_of, staging, sweep_up, write_json
from jepa_lm.utils.locks import taking_turns

MANIFEST = "corpus.json"
LOCKS = ".locks"
HASHED_BYTES = 1 << 28
"""Folders up to this size are checked by content, which takes a second; larger ones by file sizes."""


@dataclass(frozen=True)
class SourceText:
    """A split's text before tokenization.

    Args:
        bytes: size of the text. counted: bytes of its tokens by the tokenizer's table.
        sha256: hash of the text.
    """

    bytes: int
    counted: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of a folder: the text of each split and the names of the files."""

    texts: dict[str, SourceText]
    files: list[str]


def write_manifest(folder: Path, texts: dict[str, SourceText]) -> None:
    """Write the list of a folder's files; must be the last file written to it."""
    listed = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    said = {"texts": {split: asdict(text) for split, text in texts.items()}, "files": listed}
    write_json(folder / MANIFEST, {**said, "checksum": _checksum(said)})


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's contents, or None if it is missing, incomplete or changed."""
    said = read_object(folder / MANIFEST)
    try:
        if said.pop("checksum") != _checksum(said):
            return None
        small = sum(entry["bytes"] for entry in said["files"].values()) <= HASHED_BYTES
        for name, entry in said["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or (
                small and sha256_of(path) != entry["sha256"]
            ):
                return None
        texts = {split: SourceText(**text) for split, text in said["texts"].items()}
        return Manifest(texts, sorted(said["files"]))
    except (OSError, KeyError):
        return None


@contextmanager
def place_to_build(folder: Path) -> Iterator[Path | None]:
    """Yield an empty folder, which replaces `folder` when the block ends without an error.

    Wait for a process that builds the same folder, and yield None if it has been built by then.

    Raises:
        UserError: the cache is not writable. OSError: the disk is full.
    """
    with ExitStack() as stack:
        try:
            locks = folder.parent / LOCKS
            locks.mkdir(parents=True, exist_ok=True)
            stack.enter_context(taking_turns(locks / folder.name))
            if read_manifest(folder) is not None:
                yield None
                return
            sweep_up(folder.parent)  # unfinished folders of killed processes
            building = stack.enter_context(staging(folder.parent))
        except OSError as error:
            raise UserError(
                f"data.cache_dir: cannot write to {folder.parent} ({error.strerror}), and the prepared data "
                "there is missing or incomplete; name another folder"
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
