"""metrics.csv that survives a resumed run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger


class _AppendingWriter(_ExperimentWriter):
    """Goes on in the file that is there; Lightning's own deletes it. A kill loses no complete row."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        _cut_half_row(path)
        with open(path, newline="", encoding="utf-8") as file:
            self.metrics_keys = next(csv.reader(file), [])
        if not self.metrics_keys:
            path.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """The same rows under more columns; the file is there at any moment."""
        path = Path(self.metrics_file_path)
        temporary = path.with_name(f".{path.name}.tmp")
        with (
            open(path, newline="", encoding="utf-8") as before,
            open(temporary, "w", newline="", encoding="utf-8") as after,
        ):
            writer = csv.DictWriter(after, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(before))
        temporary.replace(path)


def _cut_half_row(path: Path) -> None:
    """Take off what a kill left of a row that was being written."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as file:
            file.truncate(whole)


class AppendingCSVLogger(CSVLogger):
    """metrics.csv straight in the run folder; a run resumed there appends to it."""

    def __init__(self, *, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made at the first use."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the run folder holds the config in .hydra already."""
