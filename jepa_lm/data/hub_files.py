"""Fetch files of a repo on the Hugging Face hub, and hold them against its listing.

Deviation from `hf_hub_download`: huggingface_hub 2.x removes the temporary file of a broken download, so the
next call starts from zero. Here the partial file stays, and only the rest is requested (Range). Data is
checked against the listing as it arrives: not a byte more than listed is kept.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jepa_lm.data.hub_client import HubError, get, told
from jepa_lm.data.hub_listing import RemoteFile, Source, list_repo
from jepa_lm.utils.errors import UserError, warn

Problem = Callable[[RemoteFile, Path], str | None]
"""Returns what is wrong with a local file, or None."""

ATTEMPTS = 5
"""Failures in a row without progress after which a download is given up."""
BACKOFF_SECONDS = 1.0
"""Wait after the first failure; it doubles with each further failure in a row."""
PROGRESS_BYTES = 1 << 16
"""Bytes that an attempt must add to count as progress."""
UNFINISHED = ".incomplete"


def listed(source: Source) -> list[RemoteFile]:
    """Return every file below the root; ask again while the hub is busy.

    Raises:
        HubError: the listing is missing, invalid or too long, or the hub cannot be reached.
    """
    failures = 0
    while True:
        try:
            return list_repo(source)
        except HubError as error:
            failures += 1
            if not error.busy or failures == ATTEMPTS:
                raise
            time.sleep(BACKOFF_SECONDS * 2**failures)


def is_right(file: RemoteFile, target: Path, problem: Problem) -> bool:
    """Return whether a file is there and matches the listing; remove one that does not match."""
    if not target.is_file():
        return False
    said = problem(file, target)
    if said is not None:
        target.unlink()
        warn(f"{said}; it will be downloaded again, {file.size:,} bytes")
    return said is None


def obtain(file: RemoteFile, target: Path, source: Source, problem: Problem) -> None:
    """Download a file; if it continued an earlier download and does not match, download it again, once.

    Raises:
        UserError: the hub does not send it, or sends another file (which is deleted).
    """
    if not _fetch(file, target, source):
        if is_right(file, target, problem):
            return
        _fetch(file, target, source)
    said = problem(file, target)
    if said is not None:
        target.unlink()
        raise UserError(f"{said}; the file was deleted, run again to download it")


def _fetch(file: RemoteFile, target: Path, source: Source) -> bool:
    """Download one file to `target`; do not request the bytes of an earlier, broken download again.

    Returns:
        True if this call downloaded the whole file.

    Raises:
        UserError: the hub refused, or `ATTEMPTS` attempts in a row failed without progress.
    """
    from huggingface_hub.utils import tqdm

    partial = unfinished(file, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_versions(target, partial)
    partial.touch()
    if partial.stat().st_size > file.size:
        os.truncate(partial, 0)
    first = have = best = partial.stat().st_size
    failures = 0
    with tqdm(total=file.size, initial=have, unit="B", unit_scale=True, desc=file.name) as bar:
        while have < file.size:
            problem = _append_rest(source, file, partial, bar)
            have = partial.stat().st_size
            failures = 0 if have >= best + PROGRESS_BYTES else failures + 1
            best = max(best, have)
            if have < file.size:
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{source.key}: {told(source.url(file.path))} stopped at {have} of {file.size} bytes "
                        f"({problem}); run again to download only the rest{source.advice}"
                    )
                time.sleep(BACKOFF_SECONDS * 2**failures)
    partial.replace(target)
    return first == 0


def unfinished(file: RemoteFile, target: Path) -> Path:
    """Return the partial file's path; it contains the content's id, so that versions never mix."""
    return target.with_name(f"{target.name}.{file.content_id[:16]}{UNFINISHED}")


def _remove_versions(target: Path, wanted: Path) -> None:
    """Remove unfinished downloads of earlier versions of this file."""
    for path in target.parent.iterdir():
        version_of = path.name.removesuffix(UNFINISHED).rpartition(".")[0]
        if path != wanted and path.suffix == UNFINISHED and version_of == target.name:
            path.unlink()


def _append_rest(source: Source, file: RemoteFile, partial: Path, bar: Any) -> str:
    """Request the missing rest of `partial` once; return what went wrong if it stays incomplete.

    Raises:
        UserError: an error that a retry does not fix.
    """
    url, size, have = source.url(file.path), file.size, partial.stat().st_size
    longer = HubError(f"it sends more than the {size} bytes that its listing gives; refused")
    try:
        with get(url, have) as answer:
            if answer.status != 206:  # a server may ignore the range
                bar.update(-have)
                have = 0
            if have + (answer.length or 0) > size:
                raise longer
            with open(partial, "ab" if have else "wb") as output:
                for piece in answer.body:
                    have += len(piece)
                    if have > size:
                        raise longer
                    output.write(piece)
                    bar.update(len(piece))
                os.fsync(output.fileno())
    except HubError as error:
        if error.broken or error.busy:
            return str(error)
        what = f"it has fewer than the {size} bytes that its listing gives"
        what = what if error.status == 416 else str(error)
        raise UserError(f"{source.key}: cannot get {told(url)}: {what}{source.advice}") from error
    return "the connection ended early"


def difference(file: RemoteFile, path: Path, key: str) -> str | None:
    """Return how a local file differs from its listing, by size or hash, or None.

    Args:
        key: what the message begins with.
    """
    if (size := path.stat().st_size) != file.size:
        return f"{key}: {path} has {size} bytes, but its listing gives {file.size}"
    kind, digest = _digest(file, path)
    if digest != file.content_id:
        return f"{key}: {path} has {kind} {digest}, but the published file has {file.content_id}"
    return None


def _digest(file: RemoteFile, target: Path) -> tuple[str, str]:
    """Return the name and value of the hash that the listing uses: the content's sha256 or git id."""
    kind = "sha256" if len(file.content_id) == 64 else "sha1"
    made = hashlib.new(kind, usedforsecurity=False)
    if file.sha256 is None:
        made.update(b"blob %d\0" % file.size)
    with open(target, "rb") as content:
        digest = hashlib.file_digest(content, lambda: made).hexdigest()
    return (kind if file.sha256 else "the git id"), digest
