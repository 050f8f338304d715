"""Push an export to a model repo on the Hugging Face hub, in one commit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jepa_lm.artifact.container import MAGIC
from jepa_lm.artifact.hub_form import to_share
from jepa_lm.artifact.hub_repo import ARTIFACT, CONFIG, LOCAL, model_repo
from jepa_lm.artifact.publishing import ACCOUNT, belongs, find_artifact
from jepa_lm.data.hub_client import HubError, brief, endpoint, http_error, told
from jepa_lm.data.hub_files import listed
from jepa_lm.data.hub_listing import MAIN, ModelRepo
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import TOKENIZER_FILE, program


def target(key: str, name: str) -> ModelRepo:
    """Return the repo to push to.

    Raises:
        UserError: not USER/NAME, or another branch.
    """
    repo = model_repo(key, name)
    if repo.revision != MAIN:
        raise UserError(f"{key}={name}: a push goes to {MAIN}; write {repo.repo_id}")
    return repo


def push(value: str, key: str, name: str, private: bool = False) -> str:
    """Upload an export as `to_share` returns it, and replace an earlier artifact in the repo.

    The repo is created if it is missing.

    Args:
        value: folder of an export, its artifact, or `last`. key: the setting that names the repo.
        name: USER/NAME. private: the repo is private.

    Returns:
        The repo's address and the commit, for a line to print.

    Raises:
        UserError: not a complete export, no token that may write there, no network, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo = target(key, name)
    artifact, records = _files(value)
    files = to_share(artifact, records)
    with _explained(f"{key}={name}"):
        api = HfApi(endpoint=endpoint(), library_name="jepa_lm")
        before = _in_repo(repo)
        if before is None:
            api.create_repo(repo.repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo.repo_id).private:
            raise UserError(
                f"{key}={name}: is public already; make it private in its settings, or push without --private"
            )
        gone = sorted((before or set()) - files.keys())
        operations: list[Any] = [
            *(CommitOperationAdd(there, content) for there, content in files.items()),
            *(CommitOperationDelete(there, is_folder=False) for there in gone),
        ]
        commit = api.create_commit(
            repo.repo_id, operations, commit_message=f"{next(iter(files))} and its records"
        )
    return f"{told(endpoint())}/{repo.repo_id} at {brief(commit.oid)}"


def _files(value: str) -> tuple[Path, dict[str, Path]]:
    """Return the artifact of an export, and its records by their names in the repo.

    Raises:
        UserError: there is no artifact, or it lacks its records.
    """
    artifact = find_artifact(value)
    with open(artifact, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC or not ARTIFACT.fullmatch(f"artifact{artifact.suffix}"):
            raise UserError(f"artifact_path={value}: not an artifact of {program('export')}")
    beside = {name: artifact.parent / local for name, local in LOCAL.items()}
    for name in (TOKENIZER_FILE, CONFIG):  # an earlier version wrote no config
        if not beside[name].is_file():
            del beside[name]
    missing = [path.name for path in beside.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"artifact_path={value}: {', '.join(missing)} missing beside {artifact.name}; push the whole "
            f"folder that {program('export')} wrote"
        )
    if not belongs(artifact):
        raise UserError(
            f"artifact_path={value}: {ACCOUNT} beside {artifact.name} is of another artifact; export again"
        )
    return artifact, beside


def _in_repo(repo: ModelRepo) -> set[str] | None:
    """Return the names of files of an export in the repo; None if it is missing, or has no commit yet."""
    try:
        names = {file.path for file in listed(repo)}
    except HubError as error:
        # Without a token, the hub answers 401 for a missing repo.
        if error.status in (401, 404):
            return None
        raise
    return {name for name in names if name in LOCAL or ARTIFACT.fullmatch(name)}


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an error of the hub's client into one line; its warnings about the card's form are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # the client's libraries have no common kind
        raise UserError(f"{what}: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    """Explain an error from the status that it, or what caused it, has."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for link in chain:
        response = getattr(link, "response", None)
        status = getattr(response, "status_code", getattr(link, "status", 0))
        if not status:
            continue
        said = brief(link)
        if response is not None:
            message = getattr(link, "server_message", None) or response.reason_phrase
            said = brief(f"{status} {message}")
        if status in (401, 403):
            return f"no token that may write there; run `hf auth login`, or set HF_TOKEN ({said})"
        if status == 404:
            return f"no such user, organisation or repo at {told(endpoint())} ({said})"
        return f"the hub refuses it ({said})"
    if any(
        isinstance(x, http_error() | ConnectionError) or getattr(x, "broken", False) for x in chain
    ):
        return f"no network, cannot reach {told(endpoint())}: {brief(chain[-1])}"
    return f"the push failed: {brief(chain[-1])}"
