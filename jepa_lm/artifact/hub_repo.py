"""Fetch an export from a model repo on the Hugging Face hub: only files of known names, bounded and verified.

The files lie in the repo as in the folder of an export, except that the card is README.md there. `hub.json`
in the local folder names the repo and the hash of each file.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from jepa_lm.artifact.container import MAX_FILE
from jepa_lm.artifact.publishing import ACCOUNT, ARTIFACTS, CARD, RUN_CONFIG, SUBMISSION
from jepa_lm.data.hub_client import HubError, endpoint, told
from jepa_lm.data.hub_files import difference, listed, obtain
from jepa_lm.data.hub_listing import MAIN, SCHEME, ModelRepo, RemoteFile
from jepa_lm.data.sentencepiece_check import MOST_BYTES
from jepa_lm.utils.errors import UserError, system_error, warn
from jepa_lm.utils.files import read_object, sweep_up, write_json
from jepa_lm.utils.locks import taking_turns
from jepa_lm.utils.paths import TOKENIZER_FILE
from jepa_lm.utils.quoting import cut

README = "README.md"
CONFIG = "config.json"
LOCAL = {
    README: CARD,
    ACCOUNT: ACCOUNT,
    SUBMISSION: SUBMISSION,
    CONFIG: RUN_CONFIG,
    TOKENIZER_FILE: TOKENIZER_FILE,
}
"""Names in the repo beside the artifact's, and in a local folder."""
LIMITS = {
    README: 1 << 20,
    ACCOUNT: 16 << 20,
    SUBMISSION: 1 << 20,
    CONFIG: 1 << 20,
    TOKENIZER_FILE: MOST_BYTES,
}
"""Maximum bytes of each."""
ARTIFACT = re.compile(r"artifact\.[a-z0-9]{1,16}")
RECORD, UNVERIFIED, LOCK = "hub.json", ".pull", ".pull.lock"
NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPO = re.compile(rf"{NAME}/{NAME}")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,99}")
EXACT = re.compile("[0-9a-f]{40}")
"""A commit, whose files never change."""


def model_repo(key: str, value: str) -> ModelRepo:
    """Return the repo that USER/NAME, USER/NAME@REVISION or either after hf:// names.

    Args:
        key: the setting, for the message.

    Raises:
        UserError: it is not such a name.
    """
    name, at, revision = value.removeprefix(SCHEME).partition("@")
    if not REPO.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise UserError(
            f"{key}={cut(value, 120)}: not a model repo of the Hugging Face hub; write USER/NAME, such as "
            "me/my-model"
        )
    if at and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UserError(
            f"{key}={cut(value, 120)}: after the @ goes a branch, a tag or a commit, such as {MAIN}"
        )
    return ModelRepo(name, "", revision or MAIN)


def pull(repo: ModelRepo, folder: Path) -> Path:
    """Fetch the files that are missing in a folder, or differ there; return the artifact's path.

    Raises:
        UserError: no such repo, no network, not one artifact in it, a file that is too large or differs from
            its listing, or the folder holds files that were not pulled from this repo.
    """
    try:
        listing = listed(repo)
    except HubError as error:
        raise UserError(_in_words(repo, error)) from error
    return _bring(repo, listing, folder)


def cached(repo: ModelRepo, cache_dir: str) -> Path:
    """Return the path of the repo's artifact in the cache; fetch it unless it is there.

    A commit that is there needs no network. Without network, a branch or tag is what it was before, with a
    warning.

    Raises:
        UserError: see `pull`.
    """
    place = Path(os.path.expanduser(cache_dir)) / "hub" / repo.repo_id.replace("/", "--")
    folder = place / quote(repo.revision, safe="")
    if EXACT.fullmatch(repo.revision) and (artifact := _complete(repo, folder)) is not None:
        return artifact
    try:
        listing = listed(repo)
    except HubError as error:
        artifact = _complete(repo, folder) if error.broken else None
        if artifact is None:
            raise UserError(_in_words(repo, error)) from error
        warn(f"{_in_words(repo, error)}; using what was fetched before, {artifact}")
        return artifact
    return _bring(repo, listing, folder)


def _in_words(repo: ModelRepo, error: HubError) -> str:
    where = told(endpoint())
    if error.broken:
        return f"{repo.key}: no network, cannot reach {where}: {error}"
    if error.status in (401, 403):
        return (
            f"{repo.key}: no such model repo at {where}, or a private one: set HF_TOKEN to a token that may "
            f"read it ({error})"
        )
    if error.status == 404:
        return f"{repo.key}: no such model repo or revision at {where} ({error})"
    return f"{repo.key}: cannot be listed at {where}: {error}"


def _complete(repo: ModelRepo, folder: Path) -> Path | None:
    """Return the artifact's path if the folder holds all files of the repo as they were recorded."""
    with suppress(UserError, OSError, ValueError, KeyError, TypeError):
        known = read_object(folder / RECORD)
        wanted = _choose(repo, [RemoteFile(**entry) for entry in known["files"]])
        if known["repo"] == asdict(repo) and all(
            difference(file, folder / name, repo.key) is None for name, file in wanted.items()
        ):
            return folder / next(iter(wanted))
    return None


def _choose(repo: ModelRepo, listing: list[RemoteFile]) -> dict[str, RemoteFile]:
    """Return the files to fetch by their local names, the artifact first.

    Raises:
        UserError: there is not one artifact, or a file is too large.
    """
    artifacts = sorted((f for f in listing if ARTIFACT.fullmatch(f.path)), key=lambda f: f.path)
    if len(artifacts) != 1:
        names = ", ".join(file.path for file in artifacts[:5])
        found = (
            f"several artifacts in it ({names})" if names else f"no artifact in it ({ARTIFACTS})"
        )
        raise UserError(f"{repo.key}: {found}; `python -m jepa_lm.hub push` puts one there")
    wanted = {artifacts[0].path: artifacts[0]}
    wanted |= {LOCAL[file.path]: file for file in listing if file.path in LOCAL}
    for file in wanted.values():
        if file.size > (most := LIMITS.get(file.path, MAX_FILE)):
            raise UserError(
                f"{repo.key}: {file.path} has {file.size:,} bytes, more than the {most:,} allowed; refused"
            )
    return wanted


def _bring(repo: ModelRepo, listing: list[RemoteFile], folder: Path) -> Path:
    """Fetch what is missing, verify it, and only then move it to its place."""
    wanted = _choose(repo, listing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with taking_turns(folder / LOCK):
            sweep_up(folder)
            _replace(repo, wanted, folder, _pulled_before(repo, folder))
    except OSError as error:
        raise system_error(error) from error
    return folder / next(iter(wanted))


def _replace(repo: ModelRepo, wanted: dict[str, RemoteFile], folder: Path, there: set[str]) -> None:
    """Make the files of an export in a folder, `there`, those that are wanted."""
    missing = {
        name: file
        for name, file in wanted.items()
        if name not in there or difference(file, folder / name, repo.key) is not None
    }
    unverified = folder / UNVERIFIED
    for name, file in missing.items():
        obtain(file, unverified / name, repo, lambda f, path: difference(f, path, repo.key))
    # Before the files are moved: after a kill, the folder is still known to be this repo's.
    files = [asdict(file) for file in wanted.values()]
    write_json(folder / RECORD, {"repo": asdict(repo), "files": files})
    for name in missing:
        os.replace(unverified / name, folder / name)
    for name in there - wanted.keys():
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        unverified.rmdir()


def _pulled_before(repo: ModelRepo, folder: Path) -> set[str]:
    """Return the names of files of an export in the folder.

    Raises:
        UserError: they were not pulled from this repo.
    """
    names = {path.name for path in folder.iterdir()}
    there = {name for name in names if name in LOCAL.values() or ARTIFACT.fullmatch(name)}
    of = read_object(folder / RECORD).get("repo")
    if there and not (isinstance(of, dict) and of.get("repo_id") == repo.repo_id):
        raise UserError(
            f"{folder}: holds {min(there)}, which was not pulled from {repo.repo_id}; name another folder"
        )
    return there
