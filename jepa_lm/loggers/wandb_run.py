"""One Weights & Biases run per run folder: resumed under its id, finished with the run's exit code."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from jepa_lm.loggers.run_logger import Ending, RunLogger
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import write_text
from jepa_lm.utils.metrics import LOSSES, METRICS, key_of, loss_of, measured
from jepa_lm.utils.quoting import one_line

ID_FILE = "wandb_id"
"""File in the run folder with the id of its W&B run."""
PROJECT = "jepa_lm"
STEP = "trainer/global_step"
"""Lightning's name for the step axis."""
BEST = {m: "max" if quantity.larger else "min" for m, quantity in METRICS.items()}
"""Metrics whose W&B summary is the best of the run, under `val/bpb.min` and `val/solved.max`."""


class WandbRun(WandbLogger, RunLogger):
    """Lightning's W&B logger: calls `wandb.init` on first use and is closed at the end of the run.

    Only rank 0 has a W&B run.

    Args:
        project, entity: where the run is stored; None: WANDB_PROJECT or jepa_lm, and the user's own entity.
        name: None: W&B invents one. group: joins runs that belong together, such as those of a study.
        job_type: train, eval, export or report.
        offline: write files for `wandb sync`; needs neither an account nor a network.
        log_model: upload the last checkpoint as an artifact.
        save_dir: the run folder.
        resume: resume this folder's earlier W&B run, if it has one.

    Raises:
        UserError: wandb is not installed; on first use: the user is not logged in, or there is no network.
    """

    def __init__(
        self,
        *,
        project: str | None,
        entity: str | None,
        name: str | None,
        group: str | None,
        job_type: str | None,
        tags: list[str],
        offline: bool,
        log_model: bool,
        save_dir: str,
        resume: bool = False,
    ) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError("logger=wandb: wandb is not installed; pip install wandb") from error
        self.folder, self.log_model = Path(save_dir), log_model
        super().__init__(
            project=project or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=entity,
            name=name,
            group=group,
            job_type=job_type,
            tags=tags,
            save_dir=save_dir,
            id=self._kept_id() if resume else None,
            # Lightning's `offline` would set WANDB_MODE for all later runs of the process.
            mode="offline" if offline else None,
            # A W&B run that was left open must not receive this run's metrics.
            reinit="finish_previous",
        )

    def _kept_id(self) -> str | None:
        path = self.folder / ID_FILE
        if not path.is_file():
            return None
        kept = path.read_bytes()[:1000].decode(errors="replace").strip()
        if kept and not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", kept):
            raise UserError(
                f"{path}: does not hold the id of a W&B run; delete it to start a new run"
            )
        return kept or None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started on first use."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        import wandb

        asked = {key: value for key, value in self._wandb_init.items() if value is not None}
        if os.environ.get("WANDB_SWEEP_ID"):
            for key in ("project", "entity", "id"):  # set by the sweep; W&B would warn about each
                asked.pop(key, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(**asked)
        except (wandb.errors.Error, ValueError) as error:
            reason = one_line(error).rstrip(".")
            remedy = "log in with `wandb login` or WANDB_API_KEY, or set logger.wandb.offline=true"
            of_settings = "nvalid" in reason or isinstance(error, ValueError)
            raise UserError(
                f"logger=wandb: {reason}" + ("" if of_settings else f"; {remedy}")
            ) from error
        write_text(self.folder / ID_FILE, f"{run.id}\n")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for metric, best in BEST.items():
            run.define_metric(metric, step_metric=STEP, step_sync=True, summary=best)
        return run

    @rank_zero_only
    def log_summary(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Write the figures to W&B's summary, and upload the given files that exist."""
        if self._experiment is None:
            return
        if summary.get("val"):
            val, loss = summary["val"], loss_of(summary["val"])
            # Plain numbers, which a sweep can optimize; `val/bpb` is none in W&B's summary.
            keys = [key_of(m) for m in measured(val) if m not in LOSSES or m == loss]
            self.log_metrics({f"final/{key}": val[key] for key in keys}, summary["steps"])
        self._experiment.summary.update(_without_tables(summary))
        for path in files:
            if path.is_file():
                self._copy(path, self._experiment)

    def _copy(self, path: Path, run: Any) -> None:
        """Copy a file into W&B's folder; a link would not be synced with an offline run."""
        home = Path(run.dir)
        copy = home / path.relative_to(self.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        run.save(glob.escape(str(copy)), str(home), policy="now")

    @rank_zero_only
    def log_artifact(self, name: str, files: Sequence[Path]) -> None:
        """Log the files as one version of a model."""
        import wandb

        if self._experiment is None:
            return
        artifact = wandb.Artifact(f"{name}-{self._experiment.id}", type="model")
        for path in files:
            artifact.add_file(str(path))
        self._experiment.log_artifact(artifact)

    @rank_zero_only
    def close(self, ending: Ending) -> None:
        """Finish the W&B run; a nonzero exit code marks it as failed, or as preempted."""
        if self._experiment is None:
            return
        if self.log_model and (last := self.folder / "checkpoints" / "last.ckpt").is_file():
            self.log_artifact("checkpoint", [last])
        run, self._experiment = self._experiment, None
        if ending.preempted:
            run.mark_preempting()  # a sweep agent restarts it under the same id
        run.finish(exit_code=ending.exit_code)


def _without_tables(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Drop lists of records, which no W&B panel can show; the uploaded files hold them."""
    found: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            found[key] = _without_tables(value)
        elif not (isinstance(value, list) and any(isinstance(x, Mapping) for x in value)):
            found[key] = value
    return found
