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

    The longest job decides, for jobs that join later, too: a folder that has been begun keeps its decision,
    also where a setting made it.
    """
    undecided = {name: config for name, config in configs.items() if config["compile"] is None}
    before = load(folder) if (folder / FILE).exists() else None
    if before is not None:
        chosen = bool(before.compiled)
        if before.compiled is None:
            # From before a "no" was recorded: its jobs keep the config they ran with.
            known = {job.folder for job in before.jobs}
            undecided = {name: undecided[name] for name in undecided.keys() - known}
    else:
        longest = next(filter(pays, undecided.values()), None)
        chosen = longest is not None and compiles(longest)
    if not undecided:
        asked = {config["compile"] for config in configs.values()}
        decided = next(iter(asked)) if before is None and len(asked) == 1 else None
        return replace(manifest, compiled=before.compiled if before else decided), configs
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
