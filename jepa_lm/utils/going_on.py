"""Commands that go on with a run or a sweep, to paste into a shell."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from jepa_lm.utils.paths import called
from jepa_lm.utils.quoting import override, shell

OVERRIDES = ".hydra/overrides.yaml"
"""File of a run's folder with the overrides of its command line."""


def command_of_run(
    folder: Path, changes: Mapping[str, str], more: Iterable[str] = ()
) -> str | None:
    """Return the command that trains with a run's settings; None if its folder does not record them.

    Args:
        changes: settings to add. more: further overrides; both replace those of the run.
    """
    try:
        recorded = yaml.safe_load((folder / OVERRIDES).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(recorded, list) or not all(isinstance(word, str) for word in recorded):
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
