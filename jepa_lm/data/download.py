"""Download the parameter-golf challenge's FineWeb shards from the Hugging Face hub.

`hub_listing` says which files are wanted; here they are fetched, verified and recorded. They keep
the repo's layout below the destination.

Deviation from `hf_hub_download`: huggingface_hub 2.x removes a broken download's temporary file,
so the next call starts from zero. Here the partial file stays, and only the rest is requested
(Range). What arrives is held against the listing while it arrives: never a byte more is kept.

`downloads.json` in the destination remembers the repo's listing and which files were verified, so
that later starts neither touch the network nor hash 20 GB again. What has changed since, or never
was right, is fetched anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jepa_lm.data.download_record import DownloadRecord
from jepa_lm.data.hub_client import HubError, endpoint, get, told
from jepa_lm.data.hub_listing import RemoteFile, Source, Wanted, choose, list_repo
from jepa_lm.data.shards import open_shard
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.files import sweep_up
from jepa_lm.utils.locks import taking_turns
from jepa_lm.utils.output import tell

ATTEMPTS = 5
"""Failures in a row, with next to nothing new, after which a download is given up."""
BACKOFF_SECONDS = 1.0
"""Wait after a failure that followed progress; it doubles with each further one in a row."""
PROGRESS_BYTES = 1 << 16
"""What an attempt has to bring to count as progress."""
UNFINISHED = ".incomplete"
TOLD_BYTES = 1_000_000_000
"""What is to be downloaded above this size is told before its first byte."""
ON_DISK_HINT = "data.path=FOLDER can point at shards already on disk"


@dataclass(frozen=True)
class Downloaded:
    """Local paths: shards sorted by name; no tokenizer for byte models."""

    train: list[Path]
    val: list[Path]
    tokenizer: Path | None


def download_shards(
    *,
    folder: str,
    destination: Path,
    train_shards: int,
    tokenizer_file: str | None,
    repo_id: str = "willdepueoai/parameter-golf",
    root: str = "datasets",
    revision: str = "main",
) -> Downloaded:
    """Make sure that shards and tokenizer lie in `destination`, verified; fetch what is missing.

    Args:
        folder: the dataset's folder in the repo, e.g. `fineweb10B_sp1024`.
        destination: local folder; files keep the repo's layout below it.
        train_shards: how many training shards, the first by name; all validation shards come too.
        tokenizer_file: file name such as `fineweb_1024_bpe.model`; None for byte models.
        root: folder of the repo to look in, "" for all of it.

    Raises:
        UserError: unknown folder or tokenizer, more shards than published, hub out of reach, disk
            full, or a file that is not what the repo promises (it is deleted).
    """
    source = Source(repo_id, root, revision)
    record = DownloadRecord(destination, source)
    with contextlib.suppress(UserError, OSError):
        # The record may be older than what is asked for now: ask the hub before complaining.
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
            # By the process that holds the lock, the first rank where it starts the others: nobody else
            # knows what is missing, and the others find all of it there.
            tell(_in_words(len(missing), needed, source, destination, train_shards))
        for file in missing:
            _obtain(file, destination, source, wanted)
            record.remember(file)
        record.save()
    return _local(wanted, destination)


def _local(wanted: Wanted, destination: Path) -> Downloaded:
    train, val, tokenizer = ([file.below(destination) for file in files] for files in wanted)
    return Downloaded(train, val, tokenizer[0] if tokenizer else None)


@contextlib.contextmanager
def _writing_to(destination: Path) -> Iterator[None]:
    """Hold the destination's lock: the ranks of one job must not append to the same partial file.

    A disk that is full or not writable becomes a UserError.
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
    """Bytes of a file that are not in the destination yet."""
    part = _unfinished(file, file.below(destination))
    have = part.stat().st_size if part.is_file() else 0
    return file.size - have if have <= file.size else file.size  # too long: begun anew


def _check_space(needed: int, destination: Path) -> None:
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise UserError(
            f"data: {needed / 1e9:,.1f} GB are to be downloaded, and {destination} has {free / 1e9:,.1f} GB "
            f"free; name another disk with paths.cache=FOLDER, or {ON_DISK_HINT}"
        )


def _in_words(files: int, needed: int, source: Source, destination: Path, train_shards: int) -> str:
    """What comes, from where, to where, and what makes it less."""
    return (
        f"data: downloading {files:,} file{'' if files == 1 else 's'}, {needed / 1e9:,.1f} GB, from {source} "
        f"at {told(endpoint())} to {destination}; a smaller data.corpus.train_shards={train_shards} makes it "
        f"less, paths.cache=FOLDER names another place, and {ON_DISK_HINT}"
    )


def _is_right(file: RemoteFile, destination: Path, wanted: Wanted) -> bool:
    """Whether a file lies there as the listing says; one that is not right is removed."""
    target = file.below(destination)
    if not target.is_file():
        return False
    problem = _problem(file, target, wanted)
    if problem is not None:
        target.unlink()
        warn(f"{problem}; it is fetched anew, {file.size:,} bytes")
    return problem is None


def _obtain(file: RemoteFile, destination: Path, source: Source, wanted: Wanted) -> None:
    """Fetch a file; what was begun earlier and then is not right is fetched anew, once.

    Raises:
        UserError: the hub does not give it, or gives another (which is deleted).
    """
    target = file.below(destination)
    if not _fetch(file, target, source.url(file.path)):
        if _is_right(file, destination, wanted):
            return
        _fetch(file, target, source.url(file.path))
    problem = _problem(file, target, wanted)
    if problem is not None:
        target.unlink()
        raise UserError(f"{problem}; the file was deleted, start again to fetch it anew")


def _fetch(file: RemoteFile, target: Path, url: str) -> bool:
    """Download one file to `target`; bytes of an earlier, broken download are not asked for again.

    Returns:
        Whether all of it came now.

    Raises:
        UserError: refused by the hub, or `ATTEMPTS` failures in a row without progress.
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
                        f"data: {told(url)} stopped at {have} of {file.size} bytes ({problem}); start "
                        f"again to fetch only the rest, or {ON_DISK_HINT}"
                    )
                time.sleep(BACKOFF_SECONDS * 2**failures)
    partial.replace(target)
    return first == 0


def _unfinished(file: RemoteFile, target: Path) -> Path:
    """The content's id is part of the name: halves of two versions never join."""
    return target.with_name(f"{target.name}.{file.content_id[:16]}{UNFINISHED}")


def _remove_versions(target: Path, wanted: Path) -> None:
    """Remove unfinished downloads of what the repo held under this name before."""
    for path in target.parent.iterdir():
        version_of = path.name.removesuffix(UNFINISHED).rpartition(".")[0]
        if path != wanted and path.suffix == UNFINISHED and version_of == target.name:
            path.unlink()


def _append_rest(url: str, partial: Path, size: int, bar: Any) -> str:
    """Request once what `partial` still lacks; returns what went wrong, if it stays incomplete.

    Raises:
        UserError: an error that trying again does not mend.
    """
    have = partial.stat().st_size
    longer = HubError(f"it sends more than the {size} bytes that its listing says; refused")
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
        what = f"it has fewer than the {size} bytes that its listing says"
        what = what if error.status == 416 else str(error)
        raise UserError(f"data: cannot get {told(url)}: {what}; {ON_DISK_HINT}") from error
    return "the connection ended early"


def _problem(file: RemoteFile, target: Path, wanted: Wanted) -> str | None:
    """What is wrong with a file: a shard's header, its size, or its hash."""
    if file not in wanted.tokenizer:
        try:
            open_shard(target)
        except UserError as error:
            return str(error)
    if (size := target.stat().st_size) != file.size:
        return f"data: {target} has {size} bytes, but its listing says {file.size}"
    kind, digest = _digest(file, target)
    if digest != file.content_id:
        return f"data: {target} has {kind} {digest}, published is {file.content_id}"
    return None


def _digest(file: RemoteFile, target: Path) -> tuple[str, str]:
    """The hash that the listing gives: sha256 of the content, or git's id of it."""
    kind = "sha256" if len(file.content_id) == 64 else "sha1"
    made = hashlib.new(kind, usedforsecurity=False)
    if file.sha256 is None:
        made.update(b"blob %d\0" % file.size)
    with open(target, "rb") as content:
        digest = hashlib.file_digest(content, lambda: made).hexdigest()
    return (kind if file.sha256 else "the git id"), digest
