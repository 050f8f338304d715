"""Whether the jobs of a sweep are compiled, decided for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepa_lm.study.manifest import FILE, Manifest, load
from jepa_lm.utils.compiling import compiles, pays
from jepa_lm.utils.provenance import config_hash


def compiled_alike(
    manifest: Manifest, configs: Mapping[str, Any], folder: Path
) -> tuple[Manifest, Mapping[str, Any]]:
    """Decide for all jobs at once what `compile=null` means: runs to be compared must not differ in it.

    If it pays for one job, all are compiled; so are they where all are told to be. A folder that has been
    begun keeps its decision for jobs that join later.
    """
    undecided = {name: config for name, config in configs.items() if config["compile"] is None}
    before = _begun(folder)
    if before is not None:
        chosen = before.compiled
        # Planned by a former version, before a "no" was recorded: such a job keeps the config it ran with.
        for job in before.jobs:
            if job.folder in undecided and job.config_hash == config_hash(undecided[job.folder]):
                del undecided[job.folder]
    elif undecided:
        longest = next(filter(pays, undecided.values()), None)
        chosen = longest is not None and compiles(longest)
    else:
        asked = {config["compile"] for config in configs.values()}
        chosen = asked.pop() if len(asked) == 1 else None
    if not undecided:
        return replace(manifest, compiled=chosen), configs
    chosen = bool(chosen)
    settled = {name: {**config, "compile": chosen} for name, config in undecided.items()}
    jobs = [
        replace(
            job,
            overrides=(*job.overrides, f"compile={str(chosen).lower()}"),
            config_hash=config_hash(settled[job.folder]),
        )
        if job.folder in settled
        else job
        for job in manifest.jobs
    ]
    return replace(manifest, jobs=tuple(jobs), compiled=chosen), {**configs, **settled}


def _begun(folder: Path) -> Manifest | None:
    """Return the plan of a folder whose runs have been begun; a study is registered before it is tuned."""
    plan = load(folder) if (folder / FILE).exists() else None
    return None if plan is None or (plan.untuned is not None and not plan.tuning) else plan
