"""The folder of a run: only one process writes there, and all records belong to one run.

A killed run leaves records and resumes with `ckpt_path=auto`. Another run in its folder would mix in its own.
"""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from jepa_lm.loggers.wandb_run import ID_FILE
from jepa_lm.model.checkpoint import CHECKPOINTS, SAVED, damage, find_checkpoint, newest_whole
from jepa_lm.utils.errors import UserError, system_error
from jepa_lm.utils.files import read_object, sweep_up, write_json, write_text
from jepa_lm.utils.finding import AUTO, LAST, as_path, newest_run
from jepa_lm.utils.locks import only_writer
from jepa_lm.utils.paths import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE
from jepa_lm.utils.trusted import Trust

KEY = "hydra.run.dir"
EVENTS = "tensorboard"
EARLIER = (METRICS_FILE, SUMMARY_FILE, CONFIG_FILE, "checkpoints/*.ckpt")
"""Files that show that the folder held a run."""
SET_ASIDE = ".damaged"


@contextmanager
def claimed(run_dir: Path, asked: str | None, trust: Trust | None = None) -> Iterator[Path | None]:
    """Lock a run's folder and yield the checkpoint to resume from; None to start at step 0.

    Only the first rank locks the folder and checks its contents.

    Args:
        asked: `ckpt_path`. trust: how far the checkpoint is trusted.

    Raises:
        UserError: another process is writing there, the folder holds the records of another run, or there is
            no checkpoint where `asked` points.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0
    with only_writer(run_dir, KEY) if first else nullcontext():
        resume = None if asked is None else find_resume(asked, run_dir, trust)
        if first:
            sweep_up(run_dir)
            _require_one_run(run_dir, asked, resume)
        yield resume


def find_resume(value: str, run_dir: Path, trust: Trust | None = None) -> Path | None:
    """Return the checkpoint that a training run resumes from; None to start at step 0.

    `auto` looks in the run's own folder and starts at step 0 if it has none; `last` takes the latest other
    run with a checkpoint.

    Raises:
        UserError: no checkpoint there, or only damaged ones.
    """
    if value == AUTO:
        return newest_whole(run_dir / "checkpoints", trust)
    if value == LAST and not as_path("ckpt_path", value).exists():
        newest = newest_run("ckpt_path", value, CHECKPOINTS, but=run_dir)
        return find_checkpoint(str(newest), trust)
    return find_checkpoint(value, trust)


def _require_one_run(run_dir: Path, asked: str | None, resume: Path | None) -> None:
    """Check that the folder's records belong to the run that resumes there; clear those of a failed start."""
    if resume is not None and resume.resolve().is_relative_to(run_dir.resolve()):
        return
    found = [path for pattern in EARLIER for path in sorted(run_dir.glob(pattern))]
    if not found:
        return
    names = ", ".join(str(path.relative_to(run_dir)) for path in found[:3])
    if asked != AUTO:
        raise UserError(
            f"{KEY}={run_dir}: holds the records of an earlier run ({names}); ckpt_path=auto resumes that "
            "run, another folder starts a new one"
        )
    if read_object(run_dir / SUMMARY_FILE).get("status") == "finished":
        raise UserError(
            f"ckpt_path=auto: {run_dir} holds a finished run without its checkpoints ({names}); name "
            f"another folder with {KEY}"
        )
    # The earlier run ended before its first checkpoint, so the run and its records start again.
    for path in [*found, *run_dir.glob(ID_FILE)]:
        path.unlink()
    shutil.rmtree(run_dir / EVENTS, ignore_errors=True)


def set_later_aside(run_dir: Path, resume: Path, step: int) -> None:
    """Rename damaged checkpoints of later steps, so that they do not count among the latest.

    Raises:
        UserError: one of them is whole, so two continuations would mix.
    """
    folder = run_dir / "checkpoints"
    if resume.resolve().parent != folder.resolve():
        return
    for path in folder.glob("step-*.ckpt"):
        named = SAVED.fullmatch(path.name)
        if named is None or int(named[1]) <= step:
            continue
        if damage(path) is None:
            raise UserError(
                f"ckpt_path={resume}: {folder} holds a later checkpoint, {path.name}; resume from that one "
                f"with ckpt_path=auto, or from step {step} in another folder ({KEY})"
            )
        path.rename(path.with_name(path.name + SET_ASIDE))


class Record:
    """Writer of a run's summary.json; a finished summary stays, whatever fails later.

    Args:
        folder: the run's folder. step: the step at which this process started.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self.complete = False
        """True once the end of this run is recorded."""

    def write(self, summary: dict[str, Any]) -> None:
        """Write the summary of a run that ended."""
        write_json(self.folder / SUMMARY_FILE, summary)
        self.complete = True

    def fail(self, error: str, cause: str, step: int | None = None) -> None:
        """Write why the run failed, unless the folder is gone or holds a summary worth keeping.

        Args:
            cause: see `jepa_lm.utils.errors.cause_of`.
            step: the step reached; None if unknown, but later than the start.
        """
        kept = step is not None and step <= self.step and (self.folder / SUMMARY_FILE).is_file()
        if not self.complete and not kept:
            with suppress(OSError):
                found = {"status": "failed", "error": error, "cause": cause}
                write_json(self.folder / SUMMARY_FILE, found)

    def explain(self, error: OSError) -> UserError:
        """Return the system's error as one line; says so if the run's folder is gone."""
        named = (
            Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        )
        within = named is not None and named.is_relative_to(self.folder)
        if not self.folder.is_dir() or (isinstance(error, FileNotFoundError) and within):
            return UserError(
                f"{KEY}={self.folder}: the folder of this run is gone ({error.strerror or error}); "
                "training stopped"
            )
        return system_error(error)


def hydra_job(run_dir: Path) -> DictConfig | None:
    """Return Hydra's own config of the job that writes to this folder; None if Hydra did not start it."""
    found: Any = HydraConfig.instance().cfg
    if found is None or OmegaConf.is_missing(found.hydra.runtime, "output_dir"):
        return None  # `--cfg job` has no folder
    if Path(found.hydra.runtime.output_dir).resolve() != run_dir.resolve():
        return None
    return typing.cast(DictConfig, found)


def keep_overrides(cfg: DictConfig, run_dir: Path) -> None:
    """Write a job's `.hydra/`; Hydra itself would write it before a folder in use could be refused."""
    job = hydra_job(run_dir)
    if job is None:
        return
    folder = run_dir / ".hydra"
    folder.mkdir(exist_ok=True)
    sweep_up(folder)
    parts = {"config": cfg, "hydra": OmegaConf.masked_copy(job, "hydra")}
    if not OmegaConf.is_missing(
        job.hydra.overrides, "task"
    ):  # of a config that Python code has changed
        parts["overrides"] = job.hydra.overrides.task
    for name, node in parts.items():
        write_text(folder / f"{name}.yaml", OmegaConf.to_yaml(node))
