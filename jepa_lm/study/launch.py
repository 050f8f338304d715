"""Launch the jobs of a sweep; those that the machine ended are tried once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from jepa_lm.loggers.settings import fitted
from jepa_lm.study.duration import LOOKS_EVERY, JobLines, Launching
from jepa_lm.study.manifest import Job, Manifest
from jepa_lm.study.runs import Run
from jepa_lm.utils.errors import cause_of, warn
from jepa_lm.utils.files import write_json
from jepa_lm.utils.going_on import same_command
from jepa_lm.utils.output import tell
from jepa_lm.utils.paths import SUMMARY_FILE
from jepa_lm.utils.quoting import quoted
from jepa_lm.utils.waiting import repeating


def launch(
    manifest: Manifest,
    configs: Mapping[str, Any],
    todo: Sequence[Job],
    folder: Path,
    launcher: Launcher,
    how: Launching,
    *,
    retry: bool = True,
) -> dict[str, JobReturn]:
    """Launch jobs and return the launcher's results by folder.

    Args:
        configs: resolved configs by folder. todo: the jobs to launch. folder: of the sweep.
        retry: launch those that the machine ended once more.
    """
    words = [_job_words(job, configs[job.folder], manifest, folder, how.below) for job in todo]
    for job in todo:
        if Run(folder / job.folder).status == "failed":  # the record is of the previous attempt
            (folder / job.folder / SUMMARY_FILE).unlink()
    results: Sequence[JobReturn] = []
    broke = False
    lines = JobLines(manifest.jobs, todo, folder, how)
    done = len(manifest.jobs) - len(todo)
    try:
        with repeating(LOOKS_EVERY, lines.look):
            results = launcher.launch(words, initial_job_idx=done) if words else []
    except BrokenExecutor as error:  # a worker was killed, and its launcher gave up
        broke = True
        warn(f"the launcher stopped: {error or type(error).__name__}")
    except BaseException:  # a signal
        tell(f"to go on: {same_command({'hydra.sweep.dir': str(how.root(folder))})}")
        raise
    returned = dict(zip((job.folder for job in todo), results, strict=False))
    ended = {name for name, result in returned.items() if result.status is not JobStatus.COMPLETED}
    for name in ended:
        if not Run(folder / name).summary:
            # The job failed before its run began; the report reads the reason from this record.
            (folder / name).mkdir(parents=True, exist_ok=True)
            why = returned[name]._return_value
            failed = {"status": "failed", "error": str(why), "cause": cause_of(why)}
            write_json(folder / name / SUMMARY_FILE, failed)
    runs = ((job, Run(folder / job.folder)) for job in todo if broke or job.folder in ended)
    lost = [job for job, run in runs if run.lost]
    if lost and retry:
        tell(
            f"{len(lost)} jobs were ended by the machine and not by what they computed, such as "
            f"{lost[0].folder}; they are tried once more"
        )
        returned |= launch(manifest, configs, lost, folder, launcher, how, retry=False)
    return returned


def _job_words(
    job: Job, config: Mapping[str, Any], manifest: Manifest, folder: Path, below: str = ""
) -> list[str]:
    """Return the overrides of a job, with its folder, its checkpoint, and its W&B group and name."""
    words = [*job.overrides, f"hydra.sweep.subdir={Path(below, job.folder).as_posix()}"]
    if config["ckpt_path"] is None and (folder / job.folder).is_dir():  # started, or failed
        words.append("ckpt_path=auto")
    dashboard = config["logger"].get("wandb")
    if dashboard is not None:
        ours = {"group": fitted(wandb_group(manifest, folder)), "name": fitted(job.folder)}
        words += [f"logger.wandb.{k}={quoted(v)}" for k, v in ours.items() if dashboard[k] is None]
    return words


def wandb_group(manifest: Manifest, folder: Path) -> str:
    """Return the W&B group of a sweep's runs."""
    return f"{manifest.name} {folder.name}"
