"""metrics.csv that survives a resumed run: what comes again after a resume is there once.

A row's `step` is the number of optimizer steps before the one that it is about, as Lightning counts.
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

FILE = "metrics.csv"
VALIDATED = "val/bpb"
"""Column that only rows of a validation fill."""
Row = dict[str, str]


class _AppendingWriter(_ExperimentWriter):
    """Goes on in the file that is there; Lightning's own deletes it. A kill loses no complete row."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        _cut_half_row(path)
        self.metrics_keys, _ = _read(path)
        if not self.metrics_keys:
            path.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """The same rows under more columns; the file is there at any moment."""
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _read(path)[1])


def _cut_half_row(path: Path) -> None:
    """Take off what a kill left of a row that was being written."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as file:
            file.truncate(whole)


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows, without one that a kill left half written.

    Raises:
        UserError: the file is no table of this kind.
    """
    data = path.read_bytes()
    try:
        whole = data[: data.rfind(b"\n") + 1].decode()
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        rows = [{key: row.get(key) or "" for key in reader.fieldnames or ()} for row in reader]
        return list(reader.fieldnames or ()), rows
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); move it away to go on without it") from error


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _before(step: int) -> Callable[[Row], bool]:
    """Whether a row is about one of the first `step` steps; one without a number stays."""

    def kept(row: Row) -> bool:
        number = row.get("step", "")
        return not number.isdecimal() or int(number) < step

    return kept


def validated(folder: Path, step: int) -> bool:
    """Whether the metrics.csv of a run folder holds the validation after this many steps."""
    path = folder / FILE
    if not path.is_file():
        return False
    rows = _read(path)[1]
    return any(row.get("step") == str(step - 1) and row.get(VALIDATED) for row in rows)


class AppendingCSVLogger(CSVLogger, RunLogger):
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

    @rank_zero_only
    def goes_on(self, step: int) -> None:
        """Take out rows of later steps, which will be written again."""
        path = Path(self.log_dir) / FILE
        if not path.is_file():
            return
        _cut_half_row(path)
        columns, rows = _read(path)
        kept = list(filter(_before(step), rows))
        if len(kept) < len(rows):
            _write(path, columns, kept)

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the run folder holds the config in .hydra already."""
