"""Download the parameter-golf challenge's FineWeb shards from the Hugging Face hub.

`hub_listing` chooses the files; this module fetches, verifies and records them. They keep the repo's layout
below the destination.

Deviation from `hf_hub_download`: huggingface_hub 2.x removes the temporary file of a broken download, so the
next call starts from zero. Here the partial file stays, and only the rest is requested (Range). Data is
checked against the listing as it arrives: not a byte more than listed is kept.

`downloads.json` in the destination records the repo's listing and which files were verified, so that later
starts neither use the network nor hash 20 GB again. A file that has changed since, or was never right, is
downloaded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from jepa_lm.data.corpora import Shards
from jepa_lm.data.download_record import DownloadRecord
from jepa_lm.data.hub_client import HubError, endpoint, get, told
from jepa_lm.data.hub_listing import RemoteFile, Source, Wanted, choose, list_repo
from jepa_lm.data.shards import open_shard
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.files import sweep_up
from jepa_lm.utils.locks import taking_turns
from jepa_lm.utils.output import tell

ATTEMPTS = 5
"""Failures in a row without progress after which a download is given up."""
BACKOFF_SECONDS = 1.0
"""Wait after the first failure; it doubles with each further failure in a row."""
PROGRESS_BYTES = 1 << 16
"""Bytes that an attempt must add to count as progress."""
UNFINISHED = ".incomplete"
TOLD_BYTES = 1_000_000_000
"""A download above this size is announced before it starts."""
ON_DISK_HINT = "data.path=FOLDER can point at shards already on disk"


def download_shards(
    *,
    folder: str,
    destination: Path,
    train_shards: int,
    tokenizer_file: str | None,
    repo_id: str = "willdepueoai/parameter-golf",
    root: str = "datasets",
    revision: str = "main",
) -> Shards:
    """Make sure that verified shards and tokenizer are in `destination`; download what is missing.

    Shards are sorted by name; byte models have no tokenizer.

    Args:
        folder: the dataset's folder in the repo, e.g. `fineweb10B_sp1024`.
        destination: local folder; files keep the repo's layout below it.
        train_shards: number of training shards, first by name; all validation shards are included.
        tokenizer_file: file name such as `fineweb_1024_bpe.model`; None for byte models.
        root: folder of the repo to search, "" for all of it.

    Raises:
        UserError: unknown folder or tokenizer, more shards than published, hub unreachable, disk full, or a
            file that differs from the listing (it is deleted).
    """
    source = Source(repo_id, root, revision)
    record = DownloadRecord(destination, source)
    with contextlib.suppress(UserError, OSError):
        # The record may be older than the request: ask the hub before reporting an error.
        wanted = choose(record.listing, folder, train_shards, tokenizer_file, source)
        if all(record.is_verified(file) for file in chain(*wanted)):
            return _local(wanted, destination)
    with _writing_to(destination):
        sweep_up(destination)
        record = DownloadRecord(
            destination, source
        )  # another process may have written while we waited
        record.listing = _listing(source)
        wanted = choose(record.listing, folder, train_shards, tokenizer_file, source)
        for file in chain(*wanted):
            if not record.is_verified(file) and _is_right(file, destination, wanted):
                record.remember(file)
        missing = [file for file in chain(*wanted) if not record.is_verified(file)]
        needed = sum(_rest(file, destination) for file in missing)
        _check_space(needed, destination)
        if needed > TOLD_BYTES:
            # Announced by the process that holds the lock (the first rank if it starts the others): only it
            # knows what is missing, and the others find everything there.
            tell(_in_words(len(missing), needed, source, destination, train_shards))
        for file in missing:
            _obtain(file, destination, source, wanted)
            record.remember(file)
        record.save()
    return _local(wanted, destination)


def _local(wanted: Wanted, destination: Path) -> Shards:
    train, val, tokenizer = ([file.below(destination) for file in files] for files in wanted)
    return Shards(train, val, tokenizer[0] if tokenizer else None)


@contextlib.contextmanager
def _writing_to(destination: Path) -> Iterator[None]:
    """Hold the destination's lock: the ranks of one job must not append to the same partial file.

    Raises:
        UserError: the disk is full or not writable.
    """
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with taking_turns(destination / ".download.lock"):
            yield
    except OSError as error:
        raise UserError(f"data: cannot write to {destination}: {error}") from error


def _listing(source: Source) -> list[RemoteFile]:
    failures = 0
    while True:
        try:
            return list_repo(source)
        except HubError as error:
            failures += 1
            if not error.busy or failures == ATTEMPTS:
                raise UserError(
                    f"data: cannot list {source.root}/ of {source} at {told(endpoint())}: {error}; "
                    f"{ON_DISK_HINT}"
                ) from error
            time.sleep(BACKOFF_SECONDS * 2**failures)


def _rest(file: RemoteFile, destination: Path) -> int:
    """Return the bytes of a file that are not in the destination yet."""
    part = _unfinished(file, file.below(destination))
    have = part.stat().st_size if part.is_file() else 0
    return file.size - have if have <= file.size else file.size  # too long: starts over


def _check_space(needed: int, destination: Path) -> None:
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise UserError(
            f"data: {needed / 1e9:,.1f} GB to download, but {destination} has only {free / 1e9:,.1f} GB "
            f"free; name another disk with paths.cache=FOLDER, or {ON_DISK_HINT}"
        )


def _in_words(files: int, needed: int, source: Source, destination: Path, train_shards: int) -> str:
    """Describe the download: its size, source and destination, and the settings that change them."""
    return (
        f"data: downloading {files:,} file{'' if files == 1 else 's'}, {needed / 1e9:,.1f} GB, from {source} "
        f"at {told(endpoint())} to {destination}; lower data.corpus.train_shards={train_shards} to download "
        f"less, paths.cache=FOLDER sets another destination, and {ON_DISK_HINT}"
    )


def _is_right(file: RemoteFile, destination: Path, wanted: Wanted) -> bool:
    """Return whether a file is there and matches the listing; remove one that does not match."""
    target = file.below(destination)
    if not target.is_file():
        return False
    problem = _problem(file, target, wanted)
    if problem is not None:
        target.unlink()
        warn(f"{problem}; it will be downloaded again, {file.size:,} bytes")
    return problem is None


def _obtain(file: RemoteFile, destination: Path, source: Source, wanted: Wanted) -> None:
    """Download a file; if it continued an earlier download and does not match, download it again, once.

    Raises:
        UserError: the hub does not send it, or sends another file (which is deleted).
    """
    target = file.below(destination)
    if not _fetch(file, target, source.url(file.path)):
        if _is_right(file, destination, wanted):
            return
        _fetch(file, target, source.url(file.path))
    problem = _problem(file, target, wanted)
    if problem is not None:
        target.unlink()
        raise UserError(f"{problem}; the file was deleted, run again to download it")


def _fetch(file: RemoteFile, target: Path, url: str) -> bool:
    """Download one file to `target`; do not request the bytes of an earlier, broken download again.

    Returns:
        True if this call downloaded the whole file.

    Raises:
        UserError: the hub refused, or `ATTEMPTS` attempts in a row failed without progress.
    """
    from huggingface_hub.utils import tqdm

    partial = _unfinished(file, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_versions(target, partial)
    partial.touch()
    if partial.stat().st_size > file.size:
        os.truncate(partial, 0)
    first = have = best = partial.stat().st_size
    failures = 0
    with tqdm(total=file.size, initial=have, unit="B", unit_scale=True, desc=file.name) as bar:
        while have < file.size:
            problem = _append_rest(url, partial, file.size, bar)
            have = partial.stat().st_size
            failures = 0 if have >= best + PROGRESS_BYTES else failures + 1
            best = max(best, have)
            if have < file.size:
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"data: {told(url)} stopped at {have} of {file.size} bytes ({problem}); run "
                        f"again to download only the rest, or {ON_DISK_HINT}"
                    )
                time.sleep(BACKOFF_SECONDS * 2**failures)
    partial.replace(target)
    return first == 0


def _unfinished(file: RemoteFile, target: Path) -> Path:
    """Return the partial file's path; it contains the content's id, so that versions never mix."""
    return target.with_name(f"{target.name}.{file.content_id[:16]}{UNFINISHED}")


def _remove_versions(target: Path, wanted: Path) -> None:
    """Remove unfinished downloads of earlier versions of this file."""
    for path in target.parent.iterdir():
        version_of = path.name.removesuffix(UNFINISHED).rpartition(".")[0]
        if path != wanted and path.suffix == UNFINISHED and version_of == target.name:
            path.unlink()


def _append_rest(url: str, partial: Path, size: int, bar: Any) -> str:
    """Request the missing rest of `partial` once; return what went wrong if it stays incomplete.

    Raises:
        UserError: an error that a retry does not fix.
    """
    have = partial.stat().st_size
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
        raise UserError(f"data: cannot get {told(url)}: {what}; {ON_DISK_HINT}") from error
    return "the connection ended early"


def _problem(file: RemoteFile, target: Path, wanted: Wanted) -> str | None:
    """Return what is wrong with a file (a shard's header, the size or the hash), or None."""
    if file not in wanted.tokenizer:
        try:
            open_shard(target)
        except UserError as error:
            return str(error)
    if (size := target.stat().st_size) != file.size:
        return f"data: {target} has {size} bytes, but its listing gives {file.size}"
    kind, digest = _digest(file, target)
    if digest != file.content_id:
        return f"data: {target} has {kind} {digest}, but the published file has {file.content_id}"
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
