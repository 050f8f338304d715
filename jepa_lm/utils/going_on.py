"""Commands that go on with a run or a sweep, to paste into a shell."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from jepa_lm.utils.files import read_yaml
from jepa_lm.utils.paths import called
from jepa_lm.utils.quoting import override, shell

OVERRIDES = ".hydra/overrides.yaml"
"""File of a run's folder with the overrides of its command line."""


def recorded_overrides(folder: Path) -> list[str] | None:
    """Return the overrides that a run's folder records; None if it records none.

    Raises:
        OSError: they cannot be read. ValueError: the file is damaged.
    """
    try:
        found = read_yaml(folder / OVERRIDES)
    except FileNotFoundError:
        return None
    if not isinstance(found, list):
        raise ValueError(f"holds a {type(found).__name__}")
    if not all(isinstance(word, str) for word in found):
        raise ValueError("holds something other than words")
    return found


def command_of_run(
    folder: Path, changes: Mapping[str, str], more: Iterable[str] = ()
) -> str | None:
    """Return the command that trains with a run's settings; None if its folder does not record them.

    Args:
        changes: settings to add. more: further overrides; both replace those of the run.
    """
    try:
        recorded = recorded_overrides(folder)
    except (OSError, ValueError):
        return None
    if recorded is None:
        return None
    later = list(more)
    keys = {key_of(word) for word in later}
    words = [word for word in recorded if key_of(word) not in keys] + later
    return _command([*_own_configs(), *words], changes)


def same_command(changes: Mapping[str, str]) -> str:
    """Return the command line of this process with settings added, in place of those that it has."""
    return _command(sys.argv[1:], changes)


def _own_configs() -> list[str]:
    """Return the flag that names the user's own config folder; a run's folder does not record it."""
    for i, word in enumerate(sys.argv):
        if word in ("--config-dir", "-cd"):
            return sys.argv[i : i + 2]
        if word.startswith("--config-dir="):
            return [word]
    return []


def key_of(word: str) -> str:
    """Return the key of an override."""
    return word.lstrip("+~").partition("=")[0]


def _command(words: Iterable[str], changes: Mapping[str, str]) -> str:
    script = Path(sys.argv[0])
    start = ["python", str(script)] if script.name == "train.py" else called("train")
    kept = [word for word in words if key_of(word) not in changes]
    added = [override(key, value) for key, value in changes.items()]
    return " ".join([shell([*start, *kept]), *added])
