"""Publish the files of an export together: a killed process leaves the earlier export or the new one.

    staged -> artifact.<ext> -> export.json (the new export is now valid) -> the rest -> delete the old one

export.json names the SHA-256 of its artifact, as submission.json and the card do. If a killed process leaves
several artifacts in a folder, the one that export.json names is valid.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import link_or_copy, read_object, sha256_of
from jepa_lm.utils.finding import find_file
from jepa_lm.utils.paths import TOKENIZER_FILE

ARTIFACTS = "artifact.*"
ACCOUNT, SUBMISSION, CARD, CODE = "export.json", "submission.json", "model_card.md", "code"
RUN_CONFIG = "run_config.json"
"""The config of the run that was exported; its name is not that of a run's own record."""
DIGEST_KEY = "artifact_sha256"
EARLIER = "artifact.earlier"
MARK = ".export"
"""Empty file that marks a code folder as written by an export."""


def find_artifact(value: str) -> Path:
    """Return the artifact that `artifact_path` names: a file, its folder, or `last`.

    Raises:
        UserError: there is no artifact, or several and export.json names none of them.
    """
    return find_file("artifact_path", value, (ARTIFACTS,), choose=counting)


def counting(artifacts: Iterable[Path]) -> Path | None:
    """Return the artifact that the export.json of its folder names, or None."""
    for path in artifacts:
        if belongs(path):
            return path
    return None


def belongs(artifact: Path) -> bool:
    """Return whether the export.json next to an artifact names it."""
    named = read_object(artifact.parent / ACCOUNT).get(DIGEST_KEY)
    try:
        return named is not None and named == sha256_of(artifact)
    except OSError:
        return False


def check_code_folder(folder: Path, code: str) -> None:
    """Check that the code folder is free or was written by an export.

    Args:
        code: value of export.code, for the message.

    Raises:
        UserError: the folder exists and no export wrote it.
    """
    if (folder / CODE).exists() and not _wrote_code(folder):
        raise UserError(
            f"export.code={code}: {folder / CODE} exists, and no export wrote it; choose another folder "
            "(hydra.run.dir)"
        )


def publish(staged: Path, folder: Path) -> None:
    """Move the files of a complete export to their final places.

    Args:
        staged: hidden folder inside `folder` that holds the files under their final names.
    """
    (new,) = staged.glob(ARTIFACTS)
    earlier, wrote_code = list(folder.glob(ARTIFACTS)), _wrote_code(folder)
    place = folder / new.name
    if place.is_file() and (len(earlier) == 1 or belongs(place)):
        second = folder / f"{EARLIER}{place.suffix}"
        second.unlink(missing_ok=True)
        link_or_copy(place, second)
        earlier.append(second)
    os.replace(new, place)
    for name in (ACCOUNT, SUBMISSION, CARD, RUN_CONFIG):
        os.replace(staged / name, folder / name)
    if (staged / TOKENIZER_FILE).is_file():
        os.replace(staged / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    if wrote_code or (staged / CODE).exists():
        _replace_code(staged, folder)
    for path in earlier:
        if path != place and path.is_file():
            path.unlink(missing_ok=True)


def _wrote_code(folder: Path) -> bool:
    """Return whether an export wrote the code there; earlier versions left no mark."""
    mark = folder / CODE / MARK
    return mark.is_file() or read_object(folder / ACCOUNT).get("code") == "minified"


def _replace_code(staged: Path, folder: Path) -> None:
    """Replace the code folder unless its source is unchanged; it is missing for a moment."""
    code, new = folder / CODE, staged / CODE
    if code.is_dir():
        if new.is_dir() and _sources(code) == _sources(new):
            return
        os.replace(code, staged / f"{CODE}.earlier")
    if new.is_dir():
        os.replace(new, code)


def _sources(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}
