"""Provenance of a result: config, source, versions, and the checkpoint that a run resumed from."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jepa_lm
from jepa_lm.utils.former_names import first
from jepa_lm.utils.metrics import LOSSES
from jepa_lm.utils.nested import at

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "sentencepiece", "numpy")
NOT_HASHED = {
    "paths",
    "ckpt_path",
    "callbacks",
    "logger",
    "checkpoint",
    "task_name",
    "tags",
    "study",
    "describe",
    "describe_for",
    "probe",
    "trust",
    "limits",
}
"""Keys that do not change what a run computes, such as paths and loggers."""


class Resumed(NamedTuple):
    """A checkpoint that a run resumes from."""

    path: Path
    step: int
    """Number of optimizer steps done."""
    validated: bool
    """True if this process sees the validation after that step recorded already."""
    compiled: bool
    """True if the loss was compiled."""


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved config that decides what a run computes."""
    kept = {key: value for key, value in config.items() if key not in NOT_HASHED}
    kept["data"] = {k: v for k, v in config["data"].items() if k != "cache_dir"}
    if "_target_" not in config.get("tokens", {}):
        kept.pop("tokens", None)  # computes the same as before there were token objectives
    metric = kept.get("metric")
    if metric in (None, *LOSSES) or at(config, "average", "ship") != "best":
        kept.pop("metric", None)  # the same weights ship without it
    kept["trainer"] = {k: v for k, v in config["trainer"].items() if k != "default_root_dir"}
    return kept


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash that is equal for runs that compute the same."""
    kept = first(relevant(config))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def git_state() -> dict[str, Any]:
    """Return the commit of the source, whether it was changed since, and a hash of the changes.

    The values are None if no repository holds the source.
    """
    folder = Path(jepa_lm.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        # A diff may contain files in any encoding.
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        # Installed, perhaps into an environment inside somebody's repository, whose commit says nothing.
        return {"commit": None, "dirty": None, "diff": None}
    changes = git("status", "--porcelain", "--untracked-files=no")
    difference = git("diff", "HEAD") if changes else None
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "diff": difference and hashlib.sha256(difference.encode()).hexdigest()[:16],
    }


@functools.cache
def source_hash() -> str:
    """Return a hash of this package's Python files as of the first call: the code that this process runs.

    Unlike a commit it does not change with documentation, and it needs no repository.
    """
    folder = Path(jepa_lm.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version(), "jepa_lm": jepa_lm.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = str(
            torch.__version__
        )  # with its build (+cu130), which PyPI's metadata lacks
    return found
