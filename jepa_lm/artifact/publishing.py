"""The files of an export take their places together: a kill leaves the earlier export or the new one.

    staged -> artifact.<ext> -> export.json, and the new one counts -> the rest -> the earlier one goes

export.json names the SHA-256 of its artifact, as submission.json and the card do. Of several artifacts in a
folder, which a kill in between can leave, the one that it names counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import link_or_copy, read_object
from jepa_lm.utils.finding import find_file

ARTIFACTS = "artifact.*"
ACCOUNT, SUBMISSION, CARD, CODE = "export.json", "submission.json", "model_card.md", "code"
DIGEST_KEY = "artifact_sha256"
EARLIER = "artifact.earlier"
MARK = ".export"
"""An empty file in a folder of code that an export wrote."""


def digest(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` shows it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_artifact(value: str) -> Path:
    """The artifact that `artifact_path` names: a file, its folder, or `last`.

    Raises:
        UserError: nothing there, or several of which none counts.
    """
    return find_file("artifact_path", value, (ARTIFACTS,), choose=counting)


def counting(artifacts: Iterable[Path]) -> Path | None:
    """That of some artifacts of one folder which its export.json names; None if it names none of them."""
    for path in artifacts:
        if belongs(path):
            return path
    return None


def belongs(artifact: Path) -> bool:
    """Whether the export.json beside an artifact is its own."""
    named = read_object(artifact.parent / ACCOUNT).get(DIGEST_KEY)
    try:
        return named is not None and named == digest(artifact)
    except OSError:
        return False


def check_code_folder(folder: Path, code: str) -> None:
    """Refuse to put code where something else lies that no export wrote.

    Args:
        code: the setting export.code, for the message.

    Raises:
        UserError: naming the folder.
    """
    if (folder / CODE).exists() and not _wrote_code(folder):
        raise UserError(
            f"export.code={code}: {folder / CODE} is there, and no export wrote it; name another folder "
            "(hydra.run.dir)"
        )


def publish(staged: Path, folder: Path) -> None:
    """Move the files of a complete export to their places.

    Args:
        staged: holds them under their names, in a hidden folder of `folder`.
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
    for name in (ACCOUNT, SUBMISSION, CARD):
        os.replace(staged / name, folder / name)
    if wrote_code or (staged / CODE).exists():
        _replace_code(staged, folder)
    for path in earlier:
        if path != place and path.is_file():
            path.unlink(missing_ok=True)


def _wrote_code(folder: Path) -> bool:
    """Whether the code there is an export's; those of earlier versions left no mark."""
    mark = folder / CODE / MARK
    return mark.is_file() or read_object(folder / ACCOUNT).get("code") == "minified"


def _replace_code(staged: Path, folder: Path) -> None:
    """Source that is the same stays; else there is a moment without any."""
    code, new = folder / CODE, staged / CODE
    if code.is_dir():
        if new.is_dir() and _sources(code) == _sources(new):
            return
        os.replace(code, staged / f"{CODE}.earlier")
    if new.is_dir():
        os.replace(new, code)


def _sources(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}
