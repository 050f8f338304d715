"""Download the parameter-golf challenge's FineWeb shards from the Hugging Face hub.

The dataset repo keeps everything below `datasets/`: folders such as `fineweb10B_sp1024` hold
`fineweb_train_000000.bin`, ..., `fineweb_val_000000.bin`, ...; tokenizers are named like
`fineweb_1024_bpe.model`. Files are found by listing the repo and matching names, so the nesting
between does not matter, and they keep the repo's layout below the destination.

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
import os
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from jepa_lm.data.shards import open_shard
from jepa_lm.errors import UserError

ATTEMPTS = 5
"""Failures in a row, without one new byte, after which a download is given up."""
BACKOFF_SECONDS = 1.0
"""Wait after a failure that followed progress; it doubles with each further one in a row."""
CONNECT_SECONDS = 10.0
ON_DISK_HINT = "data.path=FOLDER can point at shards already on disk"


@dataclass(frozen=True)
class Downloaded:
    """Local paths: shards sorted by name; no tokenizer for byte models."""

    train: list[Path]
    val: list[Path]
    tokenizer: Path | None


@dataclass(frozen=True)
class _Source:
    repo_id: str
    root: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo_id} ({self.revision})"


@dataclass(frozen=True)
class _RemoteFile:
    """One file of the repo: path from the repo's root, size in bytes, git id, sha256 if LFS."""

    path: str
    size: int
    blob: str
    sha256: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> str:
        return str(PurePosixPath(self.path).parent)

    def below(self, destination: Path) -> Path:
        """The local path, refused if it could leave the destination on any system."""
        windows = PureWindowsPath(self.path)  # splits at both kinds of slash
        if windows.anchor or ".." in windows.parts or "\0" in self.path:
            raise UserError(f"data: the repo lists an unsafe path, {self.path!r}; refused")
        return destination / self.path


_Wanted = tuple[list[_RemoteFile], list[_RemoteFile], list[_RemoteFile]]
"""Training shards, validation shards, and the tokenizer or nothing."""


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
    source = _Source(repo_id, root, revision)
    record = _Record(destination, source)
    with contextlib.suppress(UserError):
        # The record may be older than what is asked for now: ask the hub before complaining.
        wanted = _choose(record.listing, folder, train_shards, tokenizer_file, source)
        if all(record.is_verified(file) for file in chain(*wanted)):
            return _local(wanted, destination)
    with _writing_to(destination):
        record = _Record(destination, source)  # another process may have written while we waited
        record.listing = _list_repo(source)
        wanted = _choose(record.listing, folder, train_shards, tokenizer_file, source)
        for file in chain(*wanted):
            if not record.is_verified(file):
                if not file.below(destination).is_file():
                    _fetch(file, file.below(destination), source)
                _verify(file, file.below(destination), is_shard=file not in wanted[2])
                record.remember(file)
        record.save()
    return _local(wanted, destination)


def _local(wanted: _Wanted, destination: Path) -> Downloaded:
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


def _endpoint() -> str:
    """The hub's address, read at call time; huggingface_hub itself reads it only when imported."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _list_repo(source: _Source) -> list[_RemoteFile]:
    """List every file below the root; a UserError says why that is not possible."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import get_session

    try:
        _ = urlsplit(_endpoint()).port  # a malformed address is a ValueError here
        # The listing retries for half a minute, warning each time; see first if anyone is there.
        get_session().head(_endpoint(), timeout=CONNECT_SECONDS)
        entries = HfApi(endpoint=_endpoint()).list_repo_tree(
            source.repo_id,
            path_in_repo=source.root or None,
            recursive=True,
            revision=source.revision,
            repo_type="dataset",
        )
        return [
            _RemoteFile(e.path, e.size, e.blob_id, e.lfs.sha256 if e.lfs else None)
            for e in entries
            if isinstance(e, RepoFile)
        ]
    except (_http_error(), ConnectionError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"data: cannot list {source.root}/ of {source} at {_endpoint()}: {_one_line(error)}; "
            f"{ON_DISK_HINT}"
        ) from error


def _choose(
    listing: list[_RemoteFile],
    folder: str,
    train_shards: int,
    tokenizer_file: str | None,
    source: _Source,
) -> _Wanted:
    """Pick the first `train_shards` training shards, all validation shards and the tokenizer."""
    listing = sorted(listing, key=lambda file: file.path)
    shards = [file for file in listing if fnmatch(file.name, "fineweb_*.bin")]
    parents = sorted({file.parent for file in shards})
    found = [parent for parent in parents if f"/{parent}".endswith(f"/{folder}")]
    if len(found) != 1:
        # With two folders of one name, more of the path tells them apart.
        problem = "is ambiguous" if found else "does not exist"
        names = found or [PurePosixPath(parent).name for parent in parents]
        raise UserError(
            f"data.corpus.folder={folder} {problem} in {source}; choose one of: {', '.join(names)}"
        )
    shards = [file for file in shards if file.parent == found[0]]
    train = [file for file in shards if fnmatch(file.name, "fineweb_train_*.bin")]
    val = [file for file in shards if fnmatch(file.name, "fineweb_val_*.bin")]
    if not 1 <= train_shards <= len(train):
        raise UserError(
            f"data.corpus.train_shards={train_shards}: {folder} in {source} has {len(train)} "
            f"training shards; choose 1 to {len(train)}"
        )
    if not val:
        raise UserError(f"data: {folder} in {source} has no validation shards (fineweb_val_*.bin)")
    tokenizer = [file for file in listing if file.name == tokenizer_file]
    if tokenizer_file and not tokenizer:
        models = sorted({file.name for file in listing if file.name.endswith(".model")})
        raise UserError(
            f"data.tokenizer: {source} has no {tokenizer_file}; choose one of: {', '.join(models)}"
        )
    return train[:train_shards], val, tokenizer[:1]


def _fetch(file: _RemoteFile, target: Path, source: _Source) -> None:
    """Download one file to `target`; bytes of an earlier, broken download are not asked for again.

    Raises:
        UserError: refused by the hub, or `ATTEMPTS` failures in a row without progress.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, tqdm

    at = {"repo_type": "dataset", "revision": source.revision, "endpoint": _endpoint()}
    url = hf_hub_url(source.repo_id, file.path, **at)
    # A compressed answer would have other lengths than the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    target.parent.mkdir(parents=True, exist_ok=True)
    # The content's id is part of the name: halves of two versions never join.
    partial = target.with_name(f"{target.name}.{(file.sha256 or file.blob)[:16]}.incomplete")
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
    url: str, headers: dict[str, str], partial: Path, file: _RemoteFile, bar: Any
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
    except (_http_error(), ConnectionError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 500)
        if status >= 500 or status in (408, 429):
            return _one_line(error)
        if status == 416:  # there is no rest
            partial.unlink()
            raise UserError(
                f"data: {url} has fewer than the {file.size} bytes that its listing says; the part "
                "fetched was deleted, start again"
            ) from error
        raise UserError(f"data: cannot get {url}: {_one_line(error)}; {ON_DISK_HINT}") from error
    return "the connection ended early"


def _verify(file: _RemoteFile, target: Path, *, is_shard: bool) -> None:
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


def _http_error() -> type[Exception]:
    """HTTPError of the hub's client: httpx in huggingface_hub 1.x, httpx2 in 2.x.

    The hub's own error derives from it, and from OSError, by which a full disk would be retried.
    """
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, width=200, placeholder=" ...")


class _Record:
    """What is known of a destination without asking the hub, kept in its `downloads.json`."""

    def __init__(self, destination: Path, source: _Source) -> None:
        self.listing: list[_RemoteFile] = []
        self._destination, self._source = destination, source
        self._verified: dict[str, Any] = {}
        # Missing, damaged or another repo's: the hub has the truth, and files can be hashed again.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((destination / "downloads.json").read_text(encoding="utf-8"))
            self._verified = dict(known["verified"])
            if known["source"] == asdict(source):
                self.listing = [_RemoteFile(**entry) for entry in known["files"]]

    def is_verified(self, file: _RemoteFile) -> bool:
        """Whether the local file was checked against this listing and has not changed since."""
        exists = file.below(self._destination).is_file()
        return exists and self._verified.get(file.path) == self._stamp(file)

    def remember(self, file: _RemoteFile) -> None:
        self._verified[file.path] = self._stamp(file)
        self.save()

    def save(self) -> None:
        files = [asdict(file) for file in self.listing]
        known = {"source": asdict(self._source), "files": files, "verified": self._verified}
        temporary = self._destination / "downloads.tmp"
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(self._destination / "downloads.json")

    def _stamp(self, file: _RemoteFile) -> list[Any]:
        stat = file.below(self._destination).stat()
        return [stat.st_size, stat.st_mtime_ns, file.sha256 or file.blob]
