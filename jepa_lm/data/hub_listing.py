"""List the challenge's dataset repo on the Hugging Face hub and choose the files to download.

The repo keeps everything below `datasets/`: folders such as `fineweb10B_sp1024` hold
`fineweb_train_000000.bin`, ..., `fineweb_val_000000.bin`, ...; tokenizers are named like
`fineweb_1024_bpe.model`. Files are found by listing the repo and matching names, so the folders
between do not matter.

A listing is not trusted: its size is bounded, types and hashes are checked, and a path that leads out of the
folder or is not a valid file name is refused.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from jepa_lm.data.hub_client import HubError, endpoint, get
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import from_json
from jepa_lm.utils.quoting import literal

MOST_PAGES, MOST_FILES, MOST_SECONDS = 100, 100_000, 300
"""Limits of a listing, so that it stays below 1 GB. A page holds 1,000 files; the challenge's repo has about
500."""
PAGE_BYTES = 8 << 20
MOST_BYTES = 1 << 60
"""Largest size of a file."""
MAIN, SCHEME = "main", "hf://"
SHARDS = "fineweb_*.bin"
ON_DISK = "data.path=FOLDER can point at shards already on disk"
MOST_LETTERS = 200
"""Most bytes of a file or folder name; a file system allows 255, and a partial file's name is longer."""


@dataclass(frozen=True)
class Source:
    """A dataset repo on the hub: its id, the folder to list with all folders below, and the revision."""

    repo_id: str
    root: str
    revision: str

    kind: ClassVar[str] = "datasets"
    """Kind of repo, as addresses name it."""
    pages: ClassVar[str] = "datasets/"
    """What precedes the repo's id in addresses of its files."""
    recursive: ClassVar[bool] = True
    advice: ClassVar[str] = f"; {ON_DISK}"
    """What ends a message about a failure."""

    def __str__(self) -> str:
        return f"{self.repo_id} ({self.revision})"

    @property
    def key(self) -> str:
        """What a message begins with."""
        return "data"

    @property
    def listing_url(self) -> str:
        """Address of the listing's first page."""
        place = f"{quote(self.revision, safe='')}/{quote(self.root)}".rstrip("/")
        api = f"{endpoint()}/api/{self.kind}/{quote(self.repo_id)}"
        return f"{api}/tree/{place}?recursive={str(self.recursive).lower()}&expand=false"

    def url(self, path: str) -> str:
        """Return the address of a file."""
        place = f"{quote(self.revision, safe='')}/{quote(path)}"
        return f"{endpoint()}/{self.pages}{quote(self.repo_id)}/resolve/{place}"


@dataclass(frozen=True)
class ModelRepo(Source):
    """A model repo on the hub, of which only files in the uppermost folder are listed."""

    kind: ClassVar[str] = "models"
    pages: ClassVar[str] = ""
    recursive: ClassVar[bool] = False
    advice: ClassVar[str] = ""

    @property
    def key(self) -> str:
        at = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{SCHEME}{self.repo_id}{at}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repo: path from the repo's root, size in bytes, git id, sha256 if stored with LFS.

    Raises:
        ValueError: the listing gives any of them in another form.
    """

    path: str
    size: int
    blob: str
    sha256: str | None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise ValueError(f"a file whose path is {_brief(self.path)}")
        if type(self.size) is not int or not 0 <= self.size < MOST_BYTES:
            raise ValueError(f"{_brief(self.path)} with a size of {_brief(self.size)}")
        if not _is_hash(self.blob, 40, 64) or not (
            self.sha256 is None or _is_hash(self.sha256, 64)
        ):
            wrong = self.blob if self.sha256 is None else self.sha256
            raise ValueError(f"{_brief(self.path)} with a hash of {_brief(wrong)}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @property
    def content_id(self) -> str:
        return self.sha256 or self.blob

    def below(self, destination: Path) -> Path:
        """Return the local path; refuse one that could leave the destination or is invalid on some system."""
        windows = PureWindowsPath(self.path)  # splits at slashes and backslashes
        if windows.anchor or ".." in windows.parts or ":" in self.path:
            raise UserError(f"data: the repo lists an unsafe path, {_brief(self.path)}; refused")
        if not self.path.isprintable() or any(
            len(part.encode()) > MOST_LETTERS for part in windows.parts
        ):
            raise UserError(
                f"data: the repo lists {_brief(self.path)}, which is not a valid file name; refused"
            )
        return destination / self.path


def _is_hash(value: Any, *lengths: int) -> bool:
    return (
        isinstance(value, str) and len(value) in lengths and bool(re.fullmatch("[0-9a-f]+", value))
    )


def _brief(value: Any) -> str:
    """Shorten a value of a listing for a message."""
    text = literal(value) if isinstance(value, str) else literal(repr(value))
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


class Wanted(NamedTuple):
    """What to download; `tokenizer` holds one file, or none for byte models."""

    train: list[RemoteFile]
    val: list[RemoteFile]
    tokenizer: list[RemoteFile]


def list_repo(source: Source) -> list[RemoteFile]:
    """Return every file below the root.

    Raises:
        HubError: the listing is missing, invalid or too long.
    """
    url = source.listing_url
    files: dict[str, RemoteFile] = {}
    began = time.monotonic()
    for _ in range(MOST_PAGES):
        entries, following = _page(url)
        for entry in entries:
            if (file := _file(entry)) is not None:
                if file.path in files:
                    raise HubError(f"it lists {_brief(file.path)} twice")
                files[file.path] = file
        if following is None:
            return list(files.values())
        following = _same_hub(url, following)
        if len(files) > MOST_FILES or time.monotonic() - began > MOST_SECONDS:
            break
        url = following
    raise HubError(
        f"the listing does not end within {MOST_PAGES} pages, {MOST_FILES} files or {MOST_SECONDS} s"
    )


def _same_hub(url: str, following: str) -> str:
    """Return the next page's address; refuse another server, which would receive the token."""
    try:
        joined = urljoin(url, following)
        if urlsplit(joined)[:2] == urlsplit(url)[:2]:
            return joined
    except ValueError:
        pass
    raise HubError(f"its next page is on another server, {_brief(following)}")


def _page(url: str) -> tuple[list[Any], str | None]:
    """Return the entries of one page and the address of the next."""
    data = bytearray()
    with get(url) as answer:
        for piece in answer.body:
            data += piece
            if len(data) > PAGE_BYTES:
                raise HubError(f"a page of the listing has more than {PAGE_BYTES} bytes")
    try:
        entries = from_json(bytes(data))
    except ValueError as error:
        raise HubError(f"the response is not a listing ({error})") from error
    if not isinstance(entries, list):
        raise HubError(f"the response is not a list of files but {_brief(entries)}")
    return entries, answer.next_page


def _file(entry: Any) -> RemoteFile | None:
    """Return an entry of a listing as a file; None for a folder."""
    try:
        if entry["type"] != "file":
            return None
        lfs = entry.get("lfs")
        return RemoteFile(entry["path"], entry["size"], entry["oid"], lfs["oid"] if lfs else None)
    except KeyError as error:
        raise HubError(f"it lists {_brief(entry)} without {error}") from error
    except (AttributeError, TypeError) as error:
        raise HubError(f"it lists {_brief(entry)}, which is not a file") from error
    except ValueError as error:
        raise HubError(f"it lists {error}") from error


def choose(
    listing: list[RemoteFile],
    folder: str,
    train_shards: int,
    tokenizer_file: str | None,
    source: Source,
) -> Wanted:
    """Choose the first `train_shards` training shards, all validation shards and the tokenizer."""
    listing = sorted(listing, key=lambda file: file.path)
    shards = [file for file in listing if fnmatch(file.name, SHARDS)]
    parents = sorted({file.parent for file in shards})
    found = [parent for parent in parents if f"/{parent}".endswith(f"/{folder}")]
    if len(found) != 1:
        # If two folders have the same name, more of the path tells them apart.
        problem = "is ambiguous" if found else "does not exist"
        names = found or [PurePosixPath(parent).name for parent in parents]
        raise UserError(
            f"data.corpus.folder={folder} {problem} in {source}; choose one of: {_some(names)}"
        )
    shards = [file for file in shards if file.parent == found[0]]
    train = [file for file in shards if fnmatch(file.name, "fineweb_train_*.bin")]
    val = [file for file in shards if fnmatch(file.name, "fineweb_val_*.bin")]
    if not 1 <= train_shards <= len(train):
        raise UserError(
            f"data.corpus.train_shards={train_shards}: {folder} in {source} has {len(train)} "
            f"training shards{f'; choose 1 to {len(train)}' if train else ''}"
        )
    if not val:
        raise UserError(f"data: {folder} in {source} has no validation shards (fineweb_val_*.bin)")
    tokenizer = [file for file in listing if file.name == tokenizer_file]
    if tokenizer_file and not tokenizer:
        models = sorted({file.name for file in listing if file.name.endswith(".model")})
        raise UserError(
            f"data.tokenizer: {source} has no {tokenizer_file}; choose one of: {_some(models)}"
        )
    return Wanted(train[:train_shards], val, tokenizer[:1])


def _some(names: list[str], most: int = 12) -> str:
    """Join names for a message; a false listing could have any number of them."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*map(_brief, names[:most]), *more]) or "none"
