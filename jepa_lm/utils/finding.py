"""Finding runs and their files by what a setting names: a file, a run folder, or `last`.

What is newest is decided by the time in the name of a run's folder. Times of files say when somebody copied
them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from jepa_lm.utils.errors import UserError, warn

LAST = "last"
LOGS = Path("logs")
KINDS = ("runs", "multiruns")
"""Folders below a task's that hold run folders: single runs, and sweeps with their jobs."""
STARTED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")
"""Name of a run's folder, or of its sweep's: when it was started."""
DEEPEST = 6
"""Levels below `runs` that are searched: a job of a study lies three below its sweep."""


def find_file(
    key: str,
    value: str,
    patterns: tuple[str, ...],
    choose: Callable[[list[Path]], Path | None] = lambda found: None,
) -> Path:
    """The file that a setting names.

    Args:
        key: the setting, for messages.
        value: a file, a run folder, or `last` for the newest run that has one.
        patterns: of files in a run folder.
        choose: the one of several in a folder that counts, or None.

    Raises:
        UserError: nothing there, or several.
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


def as_path(key: str, value: str) -> Path:
    """The path that a setting holds.

    Raises:
        UserError: no path can be such a text.
    """
    path = Path(os.path.expanduser(value))
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={value[:80]!r}: no path ({reason})") from error
    return path


def _files_in(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [f for pattern in patterns for f in folder.glob(pattern) if f.is_file()]


def runs_below(folder: Path) -> list[Path]:
    """Run folders below a folder of logs that hold checkpoints, artifacts or records, the newest last.

    The time of a start is in a run's path, whatever has been done to the files since; runs in folders of
    other names come before those, by the times of their files.
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
    """The folder of the newest run that has such a file; `but` is passed over.

    Raises:
        UserError: `value` is not `last`, or there is none.
    """
    if value != LAST:
        raise UserError(
            f"{key}={value}: no such file or folder; give a file, a run folder, or last"
        )
    for run in reversed(runs_below(LOGS)):
        if but is not None and run.resolve() == but.resolve():
            continue
        if _files_in(run, patterns):
            return run
        warn(f"{key}=last: {run} has no {' or '.join(patterns)}; an older run is taken")
    raise UserError(f"{key}={value}: no {' or '.join(patterns)} in any run below {LOGS.resolve()}")
