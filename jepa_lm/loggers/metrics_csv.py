"""metrics.csv that survives a resume: steps that are repeated after a resume appear only once.

A row's `step` counts the optimizer steps before the one that it describes, as Lightning does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from jepa_lm.loggers.run_logger import RunLogger
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import write_bytes
from jepa_lm.utils.paths import METRICS_FILE

VALIDATED = "val/nll"
"""Column that is filled only in validation rows."""
Row = dict[str, str]


class _AppendingWriter(_ExperimentWriter):
    """Appends to an existing file, which Lightning's writer would delete. A kill loses no complete row."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        _cut_half_row(path)
        self.metrics_keys, _ = _read(path)
        if not self.metrics_keys:
            path.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Rewrite the rows with more columns; the file is replaced in one step and never missing."""
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _read(path)[1])


def _cut_half_row(path: Path) -> None:
    """Remove a last row that a kill left incomplete."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as file:
            file.truncate(whole)


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """Return columns and rows, without a last row that a kill left incomplete.

    Raises:
        UserError: the file is not a CSV table.
    """
    data = path.read_bytes()
    try:
        whole = data[: data.rfind(b"\n") + 1].decode()
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        rows = [{key: row.get(key) or "" for key in reader.fieldnames or ()} for row in reader]
        return list(reader.fieldnames or ()), rows
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({error}); move it away to continue without it"
        ) from error


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _before(step: int) -> Callable[[Row], bool]:
    """Return a filter that keeps rows of the first `step` steps and rows without a step number."""

    def kept(row: Row) -> bool:
        number = row.get("step", "")
        return not number.isdecimal() or int(number) < step

    return kept


def validated(folder: Path, step: int) -> bool:
    """Return whether metrics.csv in a run folder holds the validation after this many steps."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return False
    rows = _read(path)[1]
    return any(row.get("step") == str(step - 1) and row.get(VALIDATED) for row in rows)


class AppendingCSVLogger(CSVLogger, RunLogger):
    """Writes metrics.csv directly in the run folder; a resumed run appends to it."""

    def __init__(self, *, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, created on first use."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def goes_on(self, step: int) -> None:
        """Remove rows of later steps, which will be written again."""
        path = Path(self.log_dir) / METRICS_FILE
        if not path.is_file():
            return
        _cut_half_row(path)
        columns, rows = _read(path)
        kept = list(filter(_before(step), rows))
        if len(kept) < len(rows):
            _write(path, columns, kept)

    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: the run folder already holds the config, in .hydra."""
