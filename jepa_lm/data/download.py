"""Download the parameter-golf challenge's FineWeb shards from the Hugging Face hub.

`hub_listing` says which files are wanted; here they are fetched, verified and recorded. They keep
the repo's layout below the destination.

Deviation from `hf_hub_download`: huggingface_hub 2.x removes a broken download's temporary file,
so the next call starts from zero. Here the partial file stays, and only the rest is requested
(Range), through the hub client's own session with its token, proxies and redirects.

`downloads.json` in the destination remembers the repo's listing and which files were verified, so
that later starts neither touch the network nor hash 20 GB again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jepa_lm.data.hub_listing import (
    ON_DISK_HINT,
    RemoteFile,
    Source,
    Wanted,
    choose,
    endpoint,
    http_error,
    list_repo,
    one_line,
)
from jepa_lm.data.shards import open_shard
from jepa_lm.errors import UserError

ATTEMPTS = 5
"""Failures in a row, without one new byte, after which a download is given up."""
BACKOFF_SECONDS = 1.0
"""Wait after a failure that followed progress; it doubles with each further one in a row."""


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
    record = _Record(destination, source)
    with contextlib.suppress(UserError):
        # The record may be older than what is asked for now: ask the hub before complaining.
        wanted = choose(record.listing, folder, train_shards, tokenizer_file, source)
        if all(record.is_verified(file) for file in chain(*wanted)):
            return _local(wanted, destination)
    with _writing_to(destination):
        record = _Record(destination, source)  # another process may have written while we waited
        record.listing = list_repo(source)
        wanted = choose(record.listing, folder, train_shards, tokenizer_file, source)
        for file in chain(*wanted):
            if not record.is_verified(file):
                if not file.below(destination).is_file():
                    _fetch(file, file.below(destination), source)
                _verify(file, file.below(destination), is_shard=file not in wanted.tokenizer)
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
    from huggingface_hub.utils import WeakFileLock

    try:
        destination.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(destination / ".download.lock"):
            yield
    except OSError as error:
        raise UserError(f"data: cannot write to {destination}: {error}") from error


def _fetch(file: RemoteFile, target: Path, source: Source) -> None:
    """Download one file to `target`; bytes of an earlier, broken download are not asked for again.

    Raises:
        UserError: refused by the hub, or `ATTEMPTS` failures in a row without progress.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, tqdm

    at = {"repo_type": "dataset", "revision": source.revision, "endpoint": endpoint()}
    url = hf_hub_url(source.repo_id, file.path, **at)
    # A compressed answer would have other lengths than the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    target.parent.mkdir(parents=True, exist_ok=True)
    # The content's id is part of the name: halves of two versions never join.
    partial = target.with_name(f"{target.name}.{file.content_id[:16]}.incomplete")
    partial.touch()
    have = best = partial.stat().st_size
    failures = 0
    with tqdm(total=file.size, initial=have, unit="B", unit_scale=True, desc=file.name) as bar:
        while have < file.size:
            problem = _append_rest(url, headers, partial, file, bar)
            have = partial.stat().st_size
            failures = 0 if have > best else failures + 1
            best = max(best, have)
            if failures >= ATTEMPTS:
                raise UserError(
                    f"data: {url} stopped at {have} of {file.size} bytes ({problem}); start again "
                    f"to fetch only the rest, or {ON_DISK_HINT}"
                )
            if have < file.size:
                time.sleep(BACKOFF_SECONDS * 2**failures)
    partial.replace(target)


def _append_rest(
    url: str, headers: dict[str, str], partial: Path, file: RemoteFile, bar: Any
) -> str:
    """Request once what `partial` still lacks; returns what went wrong, if it stays incomplete.

    Raises:
        UserError: an error that trying again does not mend.
    """
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import get_session, hf_raise_for_status

    have = partial.stat().st_size
    if have:
        headers = {**headers, "Range": f"bytes={have}-"}
    try:
        with get_session().stream(
            "GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            hf_raise_for_status(response)
            resumed = response.status_code == 206
            bar.update(0 if resumed else -have)  # a server may ignore the range
            with open(partial, "ab" if resumed else "wb") as output:
                for chunk in response.iter_bytes():
                    output.write(chunk)
                    bar.update(len(chunk))
    except (http_error(), ConnectionError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 500)
        if status >= 500 or status in (408, 429):
            return one_line(error)
        if status == 416:  # there is no rest
            partial.unlink()
            raise UserError(
                f"data: {url} has fewer than the {file.size} bytes that its listing says; the part "
                "fetched was deleted, start again"
            ) from error
        raise UserError(f"data: cannot get {url}: {one_line(error)}; {ON_DISK_HINT}") from error
    return "the connection ended early"


def _verify(file: RemoteFile, target: Path, *, is_shard: bool) -> None:
    """Check size, a shard's header, and sha256 where the listing gives one.

    Raises:
        UserError: the file is not what the listing promises; it has been deleted.
    """
    try:
        if is_shard:
            open_shard(target)
        if (size := target.stat().st_size) != file.size:
            raise UserError(f"data: {target} has {size} bytes, but its listing says {file.size}")
        if file.sha256:
            with open(target, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if digest != file.sha256:
                raise UserError(f"data: {target} has sha256 {digest}, published is {file.sha256}")
    except UserError as error:
        target.unlink()
        raise UserError(f"{error}; the file was deleted, start again to fetch it anew") from error


class _Record:
    """What is known of a destination without asking the hub, kept in its `downloads.json`."""

    def __init__(self, destination: Path, source: Source) -> None:
        self.listing: list[RemoteFile] = []
        self._destination, self._source = destination, source
        self._verified: dict[str, Any] = {}
        # Missing, damaged or another repo's: the hub has the truth, and files can be hashed again.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((destination / "downloads.json").read_text(encoding="utf-8"))
            self._verified = dict(known["verified"])
            if known["source"] == asdict(source):
                self.listing = [RemoteFile(**entry) for entry in known["files"]]

    def is_verified(self, file: RemoteFile) -> bool:
        """Whether the local file was checked against this listing and has not changed since."""
        exists = file.below(self._destination).is_file()
        return exists and self._verified.get(file.path) == self._stamp(file)

    def remember(self, file: RemoteFile) -> None:
        self._verified[file.path] = self._stamp(file)
        self.save()

    def save(self) -> None:
        files = [asdict(file) for file in self.listing]
        known = {"source": asdict(self._source), "files": files, "verified": self._verified}
        temporary = self._destination / "downloads.tmp"
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(self._destination / "downloads.json")

    def _stamp(self, file: RemoteFile) -> list[Any]:
        stat = file.below(self._destination).stat()
        return [stat.st_size, stat.st_mtime_ns, file.content_id]
