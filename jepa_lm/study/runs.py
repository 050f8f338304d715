"""Read a run folder: the valid parts of summary.json, config.json and metrics.csv."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jepa_lm.study.recorded import LARGEST_COUNT, LARGEST_NUMBER, MisfitError, read
from jepa_lm.study.shapes import Config, Summary
from jepa_lm.utils.errors import MACHINE
from jepa_lm.utils.files import read_json, read_yaml
from jepa_lm.utils.former_names import modern
from jepa_lm.utils.metrics import MetricName, key_of
from jepa_lm.utils.nested import at, class_name
from jepa_lm.utils.paths import CONFIG_FILE, METRICS_FILE, SAMPLE_FILE, SUMMARY_FILE
from jepa_lm.utils.quoting import cut, one_line

MOST_BYTES = 16 << 20
"""Largest size of a record that is read; typical ones have about 10,000."""
HIGHEST_SCORE = 1e6
"""Largest value of a metric that is accepted."""
LONGEST_LINE = 1 << 16
"""Largest number of characters in a row of metrics.csv."""
OF_WANDB = re.compile(r"(offline-)?run-.*|latest-run")
"""Names of folders below `wandb`, which hold copies of the records."""
DAMAGED = "damaged"
"""Status of a run whose summary.json cannot be read."""


@dataclass(frozen=True)
class Run:
    """A run that has started, finished or not."""

    folder: Path

    @property
    def summary(self) -> Mapping[str, Any]:
        """summary.json; empty while the run is in progress, or if it was killed."""
        return self._summary[0]

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json: the resolved config that the run started with."""
        return self._config[0]

    @property
    def damage(self) -> list[str]:
        """Invalid parts of the records, which were left out."""
        return [*self._summary[1], *self._config[1]]

    @cached_property
    def _summary(self) -> tuple[Mapping[str, Any], list[str]]:
        return _record(self.folder / SUMMARY_FILE, Summary)

    @cached_property
    def _config(self) -> tuple[Mapping[str, Any], list[str]]:
        found, wrong = _record(self.folder / CONFIG_FILE, Config)
        return modern(found), wrong

    @property
    def status(self) -> str:
        """`finished`, `failed`, `interrupted`, `unfinished` (no summary yet) or `damaged`."""
        nothing = DAMAGED if self._summary[1] else "unfinished"
        return str(self.summary.get("status", nothing))

    @property
    def finished(self) -> bool:
        """True if the run has used up its budget and has a score."""
        return self.status == "finished" and self.nll is not None

    @property
    def lost(self) -> bool:
        """True if it has no score because of the machine or a stop, so that it may be run again."""
        return self.status not in ("finished", "failed") or self.summary.get("cause") == MACHINE

    @cached_property
    def objective(self) -> str | None:
        """The chosen option of the group `objective`, or what can be inferred from the config."""
        hydra = below_hydra(self.folder, "hydra.yaml")
        chosen = at(hydra, "hydra", "runtime", "choices", "objective")
        if isinstance(chosen, str):
            return chosen
        jepa = self.config.get("jepa")
        if jepa is None:
            return None
        return class_name(jepa) if "_target_" in jepa else "none"

    @property
    def bpb(self) -> float | None:
        """Bits per byte of the final validation; None for what is not text."""
        return self.score("val/bpb")

    @property
    def nll(self) -> float | None:
        """Nats per token of the final validation."""
        return self.score("val/nll")

    @property
    def floor(self) -> float | None:
        """Nats per token below which no model of the validation rows can be expected to score."""
        return as_score(at(self.summary, "val", "floor"))

    @property
    def above_law(self) -> float | None:
        """Nats per token of the final validation above `floor`."""
        return None if self.floor is None or self.nll is None else self.nll - self.floor

    @property
    def loss(self) -> float | None:
        """Bits per byte, or nats per token of what is not text."""
        return self.nll if self.bpb is None else self.bpb

    @property
    def metric(self) -> MetricName:
        """What the run is judged by: the metric of its config, or its loss."""
        named: MetricName | None = self.config.get("metric")
        return named or ("val/nll" if self.bpb is None and self.nll is not None else "val/bpb")

    @property
    def value(self) -> float | None:
        """The run's metric at the final validation."""
        return self.score(self.metric)

    def score(self, metric: MetricName) -> float | None:
        """Return a metric of the final validation; None if the run does not have it."""
        return as_score(at(self.summary, "val", key_of(metric)))

    def sample(self, most: int) -> str:
        """Return the beginning of the text that the model wrote, of at most this length; may be empty."""
        try:
            with open(self.folder / SAMPLE_FILE, encoding="utf-8", errors="replace") as file:
                return cut(file.read(2 * most).strip(), most)
        except OSError:
            return ""

    @property
    def columns(self) -> Iterable[str]:
        """Names of the columns of metrics.csv that have numbers."""
        return self._columns

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return a column of metrics.csv as (step, value), with finite values only."""
        return self._columns.get(name, [])

    @cached_property
    def _columns(self) -> Mapping[str, list[tuple[int, float]]]:
        """Columns of metrics.csv that have numbers, by name."""
        found: dict[str, list[tuple[int, float]]] = {}
        rows = _rows(self.folder / METRICS_FILE)
        names = next(rows, [])
        if "step" not in names:
            return found
        for row in rows:
            # Most cells are empty, and a kill may leave half a row.
            cells = dict(zip(names, row, strict=False))
            for name, text in cells.items():
                if text and (point := _point(cells.get("step", ""), text)) is not None:
                    found.setdefault(name, []).append(point)
        return found


def as_score(value: Any) -> float | None:
    """Return an entry of a record if it is a number that a metric can be, else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and 0 <= value <= HIGHEST_SCORE else None


def find_runs(folder: Path) -> Iterator[Run]:
    """Yield every run below a folder, sorted by path: folders with a config.json or a summary.json.

    W&B's copies of these files do not count.
    """
    found = []
    for place, folders, files in os.walk(folder):
        if Path(place).name == "wandb":
            folders[:] = [name for name in folders if not OF_WANDB.fullmatch(name)]
        if CONFIG_FILE in files or SUMMARY_FILE in files:
            found.append(Path(place))
    for path in sorted(found):
        yield Run(path)


def below_hydra(folder: Path, name: str) -> Mapping[str, Any]:
    """Read one of Hydra's files, with references unresolved; empty if it is missing or broken."""
    try:
        found = read(dict[str, Any], read_yaml(folder / ".hydra" / name), name, [])
    except (OSError, ValueError):
        return {}
    assert isinstance(found, dict)
    return found


def _record(path: Path, shape: Any) -> tuple[Mapping[str, Any], list[str]]:
    """Return the part of a JSON file that fits its shape, and a line for each part that does not."""
    wrong: list[str] = []
    try:
        found = read(shape, read_json(path, MOST_BYTES), "", wrong)
    except FileNotFoundError:
        return {}, []
    except MisfitError:
        return {}, [f"{path.name} does not hold an object"]
    except (OSError, ValueError) as error:
        return {}, [f"{path.name} cannot be read ({one_line(error)})"]
    return found, [f"{path.name}: {text}" for text in wrong]


def _rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file without quotes; damage in one row does not affect the others."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(LONGEST_LINE):
                yield line.rstrip("\n").split(",")
    except OSError:
        return


def _point(step: str, text: str) -> tuple[int, float] | None:
    try:
        point = int(step), float(text)
    except ValueError:
        return None
    fits = 0 <= point[0] <= LARGEST_COUNT and abs(point[1]) <= LARGEST_NUMBER
    return point if fits else None
