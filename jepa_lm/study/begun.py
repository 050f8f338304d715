"""What the folder of a sweep holds already: its decisions stay, its runs must be those that are planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepa_lm.study.arms import describe_differences, differences
from jepa_lm.study.compiled_alike import compiled_alike
from jepa_lm.study.manifest import FILE, Manifest, load
from jepa_lm.study.registration import register
from jepa_lm.study.runs import Run, find_runs
from jepa_lm.study.tuning import FOLDER as TUNING
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.paths import CONFIG_FILE
from jepa_lm.utils.provenance import config_hash

FOLDER_KEY = "hydra.sweep.dir"


def registered(manifest: Manifest, folder: Path) -> Manifest:
    """Return a study's plan with its registration: the first one, if it was started before."""
    if manifest.kind != "study":
        return manifest
    if (folder / FILE).exists():
        return replace(manifest, registration=load(folder).registration)
    return replace(manifest, registration=register(manifest))


def announced(untuned: Manifest, folder: Path) -> None:
    """Write the plan of a study before its arms are tuned, so that it is dated before any score is known."""
    if not (folder / FILE).exists():
        registered(untuned, folder).save(folder)


def checked(
    manifest: Manifest, configs: Mapping[str, Any], folder: Path
) -> tuple[Manifest, dict[str, Any]]:
    """Return plan and configs with one decision on compilation, checked against the folder.

    Raises:
        UserError: see `check_unchanged`.
    """
    manifest, configs = compiled_alike(manifest, configs, folder)
    check_unchanged(manifest, configs, folder)
    return manifest, dict(configs)


def check_unchanged(manifest: Manifest, configs: Mapping[str, Any], folder: Path) -> None:
    """Check that the folder holds only this sweep, and that its runs had the configs planned now.

    Raises:
        UserError: naming the run and the difference.
    """
    if (folder / FILE).exists():
        before = load(folder)
        if (before.kind, before.name) != (manifest.kind, manifest.name):
            raise UserError(
                f"hydra.sweep.dir={folder}: holds the {before.kind} {before.name}, but this is the "
                f"{manifest.kind} {manifest.name}; name another folder"
            )
    for job in manifest.jobs:
        recorded = Run(folder / job.folder)
        ran = recorded.config
        lacking = [f"{CONFIG_FILE} has no {key}" for key in ("data", "trainer") if key not in ran]
        for problem in (*recorded.damage, *(lacking if ran else ())):
            raise UserError(
                f"{FOLDER_KEY}={folder}: the records of {job.folder} are damaged ({problem}); name another "
                f"folder, or delete {folder / job.folder}"
            )
        if ran and config_hash(ran) != job.config_hash:
            found = differences(ran, configs[job.folder])
            raise UserError(
                f"hydra.sweep.dir={folder}: {job.folder} was run with another config "
                f"({describe_differences(found)}); name another folder, or delete {folder / job.folder}"
            )
    known = {job.folder for job in manifest.jobs}
    others = [str(found.folder.relative_to(folder)) for found in find_runs(folder) if found.summary]
    left = [name for name in others if name not in known and not name.startswith(f"{TUNING}/")]
    if left:
        warn(f"{folder}: {len(left)} runs there are not part of this sweep, for example {left[0]}")
