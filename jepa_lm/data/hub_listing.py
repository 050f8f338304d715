"""What the challenge's dataset repo on the Hugging Face hub holds, and which files are wanted.

The repo keeps everything below `datasets/`: folders such as `fineweb10B_sp1024` hold
`fineweb_train_000000.bin`, ..., `fineweb_val_000000.bin`, ...; tokenizers are named like
`fineweb_1024_bpe.model`. Files are found by listing the repo and matching names, so the nesting
between does not matter.

huggingface_hub is imported only inside functions: where everything is on disk, nothing needs it.
"""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from urllib.parse import urlsplit

from jepa_lm.errors import UserError

CONNECT_SECONDS = 10.0
ON_DISK_HINT = "data.path=FOLDER can point at shards already on disk"


@dataclass(frozen=True)
class Source:
    repo_id: str
    root: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo_id} ({self.revision})"


@dataclass(frozen=True)
class RemoteFile:
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

    @property
    def content_id(self) -> str:
        return self.sha256 or self.blob

    def below(self, destination: Path) -> Path:
        """The local path, refused if it could leave the destination on any system."""
        windows = PureWindowsPath(self.path)  # splits at both kinds of slash
        if windows.anchor or ".." in windows.parts or "\0" in self.path:
            raise UserError(f"data: the repo lists an unsafe path, {self.path!r}; refused")
        return destination / self.path


class Wanted(NamedTuple):
    """What to download; `tokenizer` holds one file, or none for byte models."""

    train: list[RemoteFile]
    val: list[RemoteFile]
    tokenizer: list[RemoteFile]


def list_repo(source: Source) -> list[RemoteFile]:
    """List every file below the root; a UserError says why that is not possible."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import get_session

    try:
        _ = urlsplit(endpoint()).port  # a malformed address is a ValueError here
        # The listing retries for half a minute, warning each time; see first if anyone is there.
        get_session().head(endpoint(), timeout=CONNECT_SECONDS)
        entries = HfApi(endpoint=endpoint()).list_repo_tree(
            source.repo_id,
            path_in_repo=source.root or None,
            recursive=True,
            revision=source.revision,
            repo_type="dataset",
        )
        return [
            RemoteFile(e.path, e.size, e.blob_id, e.lfs.sha256 if e.lfs else None)
            for e in entries
            if isinstance(e, RepoFile)
        ]
    except (http_error(), ConnectionError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"data: cannot list {source.root}/ of {source} at {endpoint()}: {one_line(error)}; "
            f"{ON_DISK_HINT}"
        ) from error


def choose(
    listing: list[RemoteFile],
    folder: str,
    train_shards: int,
    tokenizer_file: str | None,
    source: Source,
) -> Wanted:
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
    return Wanted(train[:train_shards], val, tokenizer[:1])


def endpoint() -> str:
    """The hub's address, read at call time; huggingface_hub itself reads it only when imported."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def http_error() -> type[Exception]:
    """HTTPError of the hub's client: httpx in huggingface_hub 1.x, httpx2 in 2.x.

    The hub's own error derives from it, and from OSError, by which a full disk would be retried.
    """
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


def one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, width=200, placeholder=" ...")
