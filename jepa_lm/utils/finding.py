"""Find runs and their files from a setting: a file, a run folder, or `last`.

The latest run is decided by the time in the folder's name, because file times may only say when a file was
copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jepa_lm.utils.errors import UserError, warn_once_per_machine
from jepa_lm.utils.paths import LOGS
from jepa_lm.utils.quoting import override

LAST, AUTO = "last", "auto"
STARTS = {b"JEPALM1\0": "artifact_path", b"PK\x03\x04": "ckpt_path"}
"""First bytes of an exported artifact and of a checkpoint, with the setting that takes such a file."""
WHAT = {"artifact_path": "an exported artifact", "ckpt_path": "a checkpoint"}
ONLY_CHECKPOINTS = {
    "train": "a run resumes only from a checkpoint",
    "export": "it is exported already, and only a checkpoint can be exported",
}
KINDS = ("runs", "multiruns")
"""Subfolders of a task's folder that hold run folders: single runs, and sweeps with their jobs."""
STARTED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")
"""Name of a run folder or a sweep folder: the time when it was started."""
DEEPEST = 6
"""Exclusive limit on levels searched below `runs`: a study's job is three levels below its sweep."""


def find_file(
    key: str,
    value: str,
    patterns: tuple[str, ...],
    choose: Callable[[list[Path]], Path | None] = lambda found: None,
) -> Path:
    """Return the file that a setting names.

    Args:
        key: the setting, for messages.
        value: a file, a run folder, or `last` for the latest run that has such a file.
        patterns: of files in a run folder.
        choose: picks one of several files in a folder, or returns None.

    Raises:
        UserError: no file was found, or several.
    """
    path = as_path(key, value)
    if path.is_file():
        return path
    if path.exists() and not path.is_dir():
        raise UserError(f"{key}={value}: neither a file nor a folder")
    if not path.is_dir():
        path = newest_run(key, value, patterns)
    found = _files_in(path, patterns)
    if not found:
        raise UserError(f"{key}={value}: no {' or '.join(patterns)} in {path}")
    if len(found) > 1:
        if (chosen := choose(found)) is not None:
            return chosen
        names = ", ".join(sorted(f.name for f in found)[:5])
        raise UserError(f"{key}={value}: several files in {path} ({names}); name one of them")
    return found[0]


def check_model_files(command: str, ckpt: str | None, artifact: str | None = None) -> None:
    """Check the settings that name a model's file, as far as that is possible without loading it.

    Args:
        command: the command that reads the file, such as `eval`, which takes one file of either kind.

    Raises:
        UserError: a path does not exist, or holds an artifact where a checkpoint is expected or the reverse.
    """
    if command == "eval" and (ckpt is None) == (artifact is None):
        raise UserError(
            f"set ckpt_path or artifact_path, just one of them (ckpt_path={ckpt}, artifact_path={artifact})"
        )
    for key, value in {"ckpt_path": ckpt, "artifact_path": artifact}.items():
        if value is None or value == LAST or (command == "train" and value == AUTO):
            continue
        path = as_path(key, value)
        if not path.exists():
            raise _missing(key, value)
        if (right := _setting_for(path)) not in (key, None):
            instead = ONLY_CHECKPOINTS.get(command, f"write {override(right, value)}")
            raise UserError(f"{key}={value}: this is {WHAT[right]}; {instead}")


def require_path(key: str, value: str | None) -> None:
    """Raise UserError if a setting names a path, and there is nothing there."""
    if value is not None and not as_path(key, value).exists():
        raise UserError(f"{key}={value}: no such file or folder")


def _setting_for(path: Path) -> str | None:
    """Return the setting that takes this file, or the files in this folder; None if that is not certain."""
    if path.is_file():
        start = b""
        with (
            suppress(OSError),
            open(path, "rb") as file,
        ):  # whoever loads the file explains the error
            start = file.read(8)
        return next((key for first, key in STARTS.items() if start.startswith(first)), None)
    held = {
        "ckpt_path": [*path.glob("checkpoints/*.ckpt"), *path.glob("*.ckpt")],
        "artifact_path": list(path.glob("artifact.*")),
    }
    kinds = [key for key, files in held.items() if files]
    return kinds[0] if len(kinds) == 1 else None


def holds_artifact(path: Path) -> bool:
    """Return whether a path is an exported artifact, or a folder that holds one and no checkpoint."""
    return path.exists() and _setting_for(path) == "artifact_path"


def as_path(key: str, value: str) -> Path:
    """Return the path that a setting holds.

    Raises:
        UserError: the text cannot be a path.
    """
    path = Path(os.path.expanduser(value))
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={value[:80]!r}: not a valid path ({reason})") from error
    return path


def _files_in(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [f for pattern in patterns for f in folder.glob(pattern) if f.is_file()]


def runs_below(folder: Path) -> list[Path]:
    """Return the run folders below a log folder that hold checkpoints or artifacts, the latest last.

    Runs are sorted by the start time in their path, which later changes to files do not affect. Runs in
    folders with other names come first, sorted by file time.
    """
    found: set[Path] = set()
    for kind in KINDS:
        for runs in folder.glob(f"**/{kind}"):
            for depth in range(1, DEEPEST):
                below = (f for f in runs.glob("*/" * depth) if not f.name.startswith("."))
                found.update(f for f in below if f.name != "checkpoints" and _is_run(f))
    return sorted(found, key=_started)


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or any(folder.glob("artifact.*"))


def _started(folder: Path) -> tuple[str, float]:
    times = [part for part in folder.parts if STARTED.fullmatch(part)]
    return (times[-1] if times else "", folder.stat().st_mtime)


def newest_run(key: str, value: str, patterns: tuple[str, ...], but: Path | None = None) -> Path:
    """Return the folder of the latest run that has such a file, ignoring `but`.

    Raises:
        UserError: `value` is not `last`, or there is no such run.
    """
    if value != LAST:
        raise _missing(key, value)
    for run in reversed(runs_below(LOGS)):
        if but is not None and run.resolve() == but.resolve():
            continue
        if _files_in(run, patterns):
            return run
        if (run / "checkpoints").is_dir():  # the folder of an export is no run
            warn_once_per_machine(
                f"{key}=last: {run} has no {' or '.join(patterns)}; using an older run"
            )
    raise UserError(f"{key}={value}: no {' or '.join(patterns)} in any run below {LOGS.resolve()}")


def _missing(key: str, value: str) -> UserError:
    return UserError(f"{key}={value}: no such file or folder; give a file, a run folder, or last")
