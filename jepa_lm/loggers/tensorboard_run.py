"""TensorBoard's event file in the run folder, with the run's settings next to its score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from jepa_lm.loggers.run_logger import Ending, RunLogger
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.metrics import key_of, measured


class TensorBoardRun(TensorBoardLogger, RunLogger):
    """Lightning's TensorBoard logger; it writes the settings once there is a score to show with them.

    Args:
        save_dir: folder of the event file.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, *, save_dir: str) -> None:
        try:
            super().__init__(save_dir, name="", version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise UserError(
                "logger=tensorboard: tensorboard is not installed; pip install tensorboard"
            ) from error

    def goes_on(self, step: int) -> None:
        """Let TensorBoard hide events of an earlier start from this step on."""
        self._kwargs["purge_step"] = step

    @rank_zero_only
    def log_summary(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Write the summary as text, and the validation scores with the settings."""
        text = json.dumps(summary, indent=2).replace("\n", "\n    ")  # indented: code in Markdown
        self.experiment.add_text("summary", f"    {text}")
        if summary.get("val"):
            val = summary["val"]
            scores: dict[str, Any] = {metric: val[key_of(metric)] for metric in measured(val)}
            self.log_hyperparams(self.hparams, scores, summary["steps"])

    @rank_zero_only
    def close(self, ending: Ending) -> None:
        """Close the event file."""
        self.finalize("success" if ending.exit_code == 0 else "failed")
