"""Download the parameter-golf challenge's FineWeb shards from the Hugging Face hub.

`hub_listing` chooses the files, `hub_files` fetches them; this module verifies and records them. They keep
the repo's layout below the destination.

`downloads.json` in the destination records the repo's listing and which files were verified, so that later
starts neither use the network nor hash 20 GB again. A file that has changed since, or was never right, is
downloaded again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

from jepa_lm.data.corpora import Shards
from jepa_lm.data.download_record import DownloadRecord
from jepa_lm.data.hub_client import HubError, endpoint, told
from jepa_lm.data.hub_files import difference, is_right, listed, obtain, unfinished
from jepa_lm.data.hub_listing import ON_DISK, SHARDS, RemoteFile, Source, Wanted, choose
from jepa_lm.data.shards import open_shard
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import sweep_up
from jepa_lm.utils.locks import taking_turns
from jepa_lm.utils.output import tell

TOLD_BYTES = 1_000_000_000
"""A download above this size is announced before it starts."""


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
            if not record.is_verified(file) and is_right(file, file.below(destination), _problem):
                record.remember(file)
        missing = [file for file in chain(*wanted) if not record.is_verified(file)]
        needed = sum(_rest(file, destination) for file in missing)
        _check_space(needed, destination)
        if needed > TOLD_BYTES:
            # Announced by the process that holds the lock (the first rank if it starts the others): only it
            # knows what is missing, and the others find everything there.
            tell(_in_words(len(missing), needed, source, destination, train_shards))
        for file in missing:
            obtain(file, file.below(destination), source, _problem)
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
    try:
        return listed(source)
    except HubError as error:
        raise UserError(
            f"data: cannot list {source.root}/ of {source} at {told(endpoint())}: {error}{source.advice}"
        ) from error


def _rest(file: RemoteFile, destination: Path) -> int:
    """Return the bytes of a file that are not in the destination yet."""
    part = unfinished(file, file.below(destination))
    have = part.stat().st_size if part.is_file() else 0
    return file.size - have if have <= file.size else file.size  # too long: starts over


def _check_space(needed: int, destination: Path) -> None:
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise UserError(
            f"data: {needed / 1e9:,.1f} GB to download, but {destination} has only {free / 1e9:,.1f} GB "
            f"free; name another disk with paths.cache=FOLDER, or {ON_DISK}"
        )


def _in_words(files: int, needed: int, source: Source, destination: Path, train_shards: int) -> str:
    """Describe the download: its size, source and destination, and the settings that change them."""
    return (
        f"data: downloading {files:,} file{'' if files == 1 else 's'}, {needed / 1e9:,.1f} GB, from {source} "
        f"at {told(endpoint())} to {destination}; lower data.corpus.train_shards={train_shards} to download "
        f"less, paths.cache=FOLDER sets another destination, and {ON_DISK}"
    )


def _problem(file: RemoteFile, target: Path) -> str | None:
    """Return what is wrong with a file (a shard's header, the size or the hash), or None."""
    if fnmatch(file.name, SHARDS):
        try:
            open_shard(target)
        except UserError as error:
            return str(error)
    return difference(file, target, "data")
