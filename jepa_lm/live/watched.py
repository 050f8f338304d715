"""The runs below a folder, as the page shows them: a row for each, and curves of those that are chosen."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa_lm.live.files import Shelf, decoded, encoded
from jepa_lm.live.metrics import Column, Followed
from jepa_lm.study.listing import config_of
from jepa_lm.study.losses import main_weight
from jepa_lm.study.runs import Run, find_runs
from jepa_lm.utils.errors import LONGEST
from jepa_lm.utils.metrics import METRICS
from jepa_lm.utils.nested import at
from jepa_lm.utils.paths import CONFIG_FILE, METRICS_FILE, PAGE_FILE, SAMPLE_FILE, SUMMARY_FILE
from jepa_lm.utils.quoting import cut, literal

REPORT = "report.html"
SEARCHED_EVERY = 3.0
"""Seconds between two searches for new run folders."""
SILENT = 300.0
"""A run without a summary counts as running if it wrote a record within so many seconds."""
RESTARTED = 2.0
"""Seconds by which config.json is newer than the summary of an earlier part of a resumed run."""
MOST_RUNS, MOST_FOLLOWED = 2000, 64
"""Runs in the table, the latest first; runs whose measurements are in memory."""
AXES = ("step", "tokens", "seconds")
CHANGING = (SUMMARY_FILE, CONFIG_FILE, METRICS_FILE)
"""Records by whose size and time a run is known to have gone on."""
RECORDS = (*CHANGING, ".hydra/hydra.yaml", ".hydra/config.yaml")
SPEED, SECONDS = "train/tokens_per_second", "train/seconds"
BITS = ("val/bpb", "train/bpb")
"""Columns that only rows with bytes have."""
State = tuple[tuple[int, int, int], ...]


@dataclass
class _Row:
    """What is known of a run."""

    state: State
    """Size, time and inode of each record when they were read; see `_state`."""
    cells: dict[str, Any]
    tokens_per_step: float | None
    behind: bool
    """True if its metrics.csv is so large that reading it goes on at the next request."""


class Watch:
    """Reads the records of runs that other processes write; several threads may ask at once."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._rows: dict[str, _Row] = {}
        self._found: list[Path] = []
        self._searched = float("-inf")
        self._followed: OrderedDict[str, Followed] = OrderedDict()
        self._lock = threading.Lock()

    def runs(self) -> dict[str, Any]:
        """Return a row for every run, the latest first, and the names of study reports."""
        with self._lock:
            folders = self._folders()
            rows = {self.shelf.name(folder): self._row(folder) for folder in folders}
            self._rows = {name: row for name, row in rows.items() if row is not None}
            shown = sorted((r.cells for r in self._rows.values()), key=lambda r: -r["written"])
            above = {parent for folder in folders for parent in (folder, *folder.parents)}
            inside = sorted(path for path in above if path.is_relative_to(self.shelf.root))
            names = [self.shelf.name(path / REPORT) for path in inside]
        return {
            "runs": [_aged(cells) for cells in shown[:MOST_RUNS]],
            "left_out": max(0, len(shown) - MOST_RUNS),
            "reports": [
                {"path": encoded(name), "name": literal(name)}
                for name in names
                if self.shelf.has(name)
            ],
        }

    def curves(self, runs: Sequence[str], metric: str, axis: str) -> dict[str, Any]:
        """Return a metric of some runs over `step`, `tokens` or `seconds`, and the metrics that they have.

        Args:
            runs: their entries `run`; those that are not in the table are left out.
        """
        metrics: set[str] = set()
        found = []
        with self._lock:
            for name in list(dict.fromkeys(map(decoded, runs)))[:MOST_FOLLOWED]:
                row = self._rows.get(name)
                if row is None:
                    continue
                followed = self._follow(name)
                metrics |= followed.columns.keys()
                x, y = _curve(followed, metric, axis, row.tokens_per_step)
                found.append({"run": encoded(name), "x": x, "y": y})
        return {"metrics": sorted(metrics), "curves": found}

    def _folders(self) -> list[Path]:
        """Return the run folders; those with a record that is a link out of the folder are left out."""
        if time.monotonic() - self._searched > SEARCHED_EVERY:
            self._found = [
                run.folder
                for run in find_runs(self.shelf.root)
                if not any(self.shelf.leads_out(run.folder / name) for name in RECORDS)
            ]
            self._searched = time.monotonic()
        return self._found

    def _row(self, folder: Path) -> _Row | None:
        state = _state(folder)
        if not any(state):
            return None  # removed since the last search
        name = self.shelf.name(folder)
        known = self._rows.get(name)
        if known is not None and known.state == state and not known.behind:
            return known
        return self._read(folder, name, state)

    def _read(self, folder: Path, name: str, state: State) -> _Row:
        run = Run(folder)
        config = config_of(run)
        written = max(when for _, when, _ in state) / 1e9
        ended = _ended(state)
        summary = run.summary if ended else {}
        metric = run.metric
        cells = {
            "run": encoded(name),
            "folder": name or self.shelf.root.name,
            "status": run.status if ended else "",
            "step": summary.get("steps"),
            "of": _number(at(config, "trainer", "max_steps")),
            "score": run.value if ended else None,
            "speed": summary.get("tokens_per_second"),
            "objective": run.objective,
            "weight": main_weight(config),
            "seed": _number(summary.get("seed", config.get("seed"))),
            "error": cut(summary.get("error", ""), LONGEST),
            "written": written,
            "page": self.shelf.has(f"{name}/{PAGE_FILE}"),
            "sample": self.shelf.has(f"{name}/{SAMPLE_FILE}"),
        }
        behind = False
        if not ended:
            followed = self._follow(name)
            if (
                config.get("metric") is None
                and followed.step
                and not any(map(followed.latest, BITS))
            ):
                metric = "val/nll"
            score, speed = followed.latest(metric), followed.latest(SPEED)
            cells |= {"score": score, "speed": speed, "step": followed.step}
            behind = followed.behind
        cells |= {"metric": metric, "unit": METRICS[metric].unit}
        return _Row(state, cells, _number(at(config, "data", "batch_tokens")), behind)

    def _follow(self, name: str) -> Followed:
        """Return the measurements of a run, up to date; those asked for least recently are dropped."""
        path = self.shelf.root / name / METRICS_FILE
        followed = self._followed.setdefault(name, Followed(path))
        self._followed.move_to_end(name)
        followed.read()
        while len(self._followed) > MOST_FOLLOWED:
            self._followed.popitem(last=False)
        return followed


def _number(value: Any) -> float | None:
    """Return a number of a config; None for a reference that Hydra has not resolved."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _state(folder: Path) -> State:
    """Return size, time in nanoseconds and inode of the records; zeros for those that are missing."""
    found = []
    for name in (*CHANGING, PAGE_FILE):
        about = None
        with suppress(OSError):
            about = (folder / name).lstat()
        found.append((about.st_size, about.st_mtime_ns, about.st_ino) if about else (0, 0, 0))
    return tuple(found) if any(map(any, found)) else ()


def _ended(state: State) -> bool:
    """Return whether there is a summary, and no process has started in the folder since."""
    (_, summary, exists), (_, config, _), *_ = state
    return bool(exists) and config - summary <= RESTARTED * 1e9


def _aged(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the status that depends on the time, and the seconds since its last record."""
    age = max(0.0, time.time() - cells["written"])
    nothing = "running" if age < SILENT else "unfinished"
    shown = {
        key: literal(value) if isinstance(value, str) else value for key, value in cells.items()
    }
    return {**shown, "status": shown["status"] or nothing, "age": age}


def _curve(
    followed: Followed, metric: str, axis: str, tokens_per_step: float | None
) -> tuple[list[float], list[float]]:
    """Return x and y of a curve; empty if the run has not measured them."""
    column = followed.columns.get(metric)
    if column is None:
        return [], []
    steps, values = list(map(float, column.steps)), list(column.values)
    if axis == "step":
        return steps, values
    if axis == "tokens":
        return ([s * tokens_per_step for s in steps], values) if tokens_per_step else ([], [])
    clock = followed.columns.get(SECONDS)
    return ([_between(clock, step) for step in steps], values) if clock else ([], [])


def _between(clock: Column, step: float) -> float:
    """Return the seconds at a step, on the line between the two log points around it."""
    steps, seconds = clock.steps, clock.values
    if len(steps) == 1:
        return seconds[0] * step / steps[0]
    i = min(max(bisect_left(steps, step), 1), len(steps) - 1)
    share = (step - steps[i - 1]) / (steps[i] - steps[i - 1])
    return max(0.0, seconds[i - 1] + share * (seconds[i] - seconds[i - 1]))
