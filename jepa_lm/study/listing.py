"""List runs in the terminal, and compare two of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jepa_lm.study import formatting as words
from jepa_lm.study.arms import differences
from jepa_lm.study.comparable import apart, told
from jepa_lm.study.losses import main_weight
from jepa_lm.study.runs import Run, below_hydra, find_runs
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.former_names import modern
from jepa_lm.utils.metrics import ABOVE_LAW, METRICS, MetricName, measured
from jepa_lm.utils.nested import at

LIKE = (
    "status",
    "seed",
    "steps",
    "tokens",
    "passes",
    "seconds",
    "tokens_per_second",
    "config_hash",
)
"""Entries of summary.json that a comparison shows besides the scores."""

NAMED = 5
"""Largest number of folders that a message lists."""


@dataclass(frozen=True)
class Entry:
    """A row of the list: one run."""

    folder: str
    task: str | None
    objective: str | None
    weight: float | None
    seed: int | None
    steps: int | None
    bpb: float | None
    score: float | None
    """What the run is judged by, its metric."""
    above_law: float | None
    """Nats per token above the law's own score; None for text."""
    metric: MetricName
    status: str
    written: float
    """Time of the last record, in seconds since 1970."""
    damage: list[str]
    """Invalid parts of its records."""


def entries(folder: Path) -> list[Entry]:
    """Return every run below a folder, the latest last.

    Raises:
        UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise missing(folder)
    return sorted(map(_entry, find_runs(folder)), key=lambda e: e.written)


def print_entries(found: list[Entry], folder: Path, console: Console) -> None:
    """Print the runs as a table."""
    if not found:
        console.print(f"no runs below {folder}")
        return
    table = Table(title=f"runs below {folder}, the latest last", box=SIMPLE_HEAD)
    for column in ("folder", "task", "objective"):
        table.add_column(column, overflow="fold")
    for column in ("weight", "seed", "steps", "score"):
        table.add_column(column, justify="right")
    table.add_column("status")
    for e in found:
        unit = "" if e.score is None else f" {METRICS[e.metric].unit}"
        above = "" if e.above_law is None else f" ({words.score(e.above_law)} above the law)"
        score = f"{words.score(e.score)}{unit}{above}"
        numbers = (_cell(e.weight), _cell(e.seed), words.count(e.steps), score)
        table.add_row(e.folder, _cell(e.task), _cell(e.objective), *numbers, e.status)
    console.print(table)


def as_json(found: list[Entry]) -> list[dict[str, Any]]:
    """Return the runs as plain values for JSON."""
    return [asdict(entry) for entry in found]


def open_run(folder: Path) -> Run:
    """Return the run in a folder.

    Raises:
        UserError: the folder does not exist or holds no run.
    """
    if not folder.is_dir():
        raise missing(folder)
    run = Run(folder)
    if not run.summary and not config_of(run):
        below = [str(found.folder) for found in find_runs(folder)][:3]
        hint = f"; there are runs below it: {', '.join(below)}" if below else ""
        raise UserError(f"{folder}: no run there (no summary.json and no config){hint}")
    return run


def print_comparison(left: Run, right: Run, console: Console) -> list[str]:
    """Print scores, differing settings and differing records of two runs.

    Returns:
        The reasons why the runs are not comparable.
    """
    console.print(_scores(left, right))
    console.print(_settings(config_of(left), config_of(right)))
    ours, theirs = told(left), told(right)
    records = {
        key: (ours.get(key, words.NOTHING), theirs.get(key, words.NOTHING))
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    }
    if records:
        console.print(_pairs("records that differ", records))
    elif ours:
        console.print("the records are equal: versions, source, data, machine")
    match = "steps" if budget_of(left) == budget_of(right) == "steps" else None
    return apart({"A": [left], "B": [right]}, match)


def config_of(run: Run) -> Mapping[str, Any]:
    """Return config.json, or Hydra's own file, with unresolved references, if there is none."""
    return run.config or modern(below_hydra(run.folder, "config.yaml"))


def budget_of(run: Run) -> str | None:
    """Return what ends a run: `steps`, `time`, or None if both can or neither is known."""
    limits = [key for key in ("max_steps", "max_time") if at(config_of(run), "trainer", key)]
    return limits[0].removeprefix("max_") if len(limits) == 1 else None


def missing(folder: Path) -> UserError:
    """Return an error for a missing folder that suggests similar names."""
    missed, parent = next((f, f.parent) for f in (folder, *folder.parents) if f.parent.is_dir())
    others = sorted(p.name for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    if near := difflib.get_close_matches(missed.name, others, n=3):
        hint = f"; did you mean {', '.join(str(parent / name) for name in near)}?"
    else:
        hint = f"; there are {', '.join(others[:NAMED])}" if others else ""
    return UserError(f"{folder}: no such folder{hint}")


def _entry(run: Run) -> Entry:
    config, summary = config_of(run), run.summary
    task = config.get("task_name")
    return Entry(
        folder=str(run.folder),
        task=task if isinstance(task, str) else None,
        objective=run.objective,
        weight=main_weight(config),
        seed=summary.get("seed", config.get("seed")),
        steps=summary.get("steps"),
        bpb=run.bpb,
        score=run.value,
        above_law=run.above_law,
        metric=run.metric,
        status=run.status,
        written=_written(run),
        damage=run.damage,
    )


def _written(run: Run) -> float:
    """Return when the run ended, or else when its latest record was written."""
    try:
        return datetime.strptime(run.summary["written"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (KeyError, ValueError, OverflowError):
        return max(map(_changed, run.folder.glob("*.json")), default=0.0)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it is gone, or a link to nothing
        return 0.0


def _scores(left: Run, right: Run) -> Table:
    table = Table(title="two runs")
    for column in ("", "A", "B", "B - A"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    table.add_row("folder", str(left.folder), str(right.folder), "")
    table.add_row("objective", _cell(left.objective), _cell(right.objective), "")
    for metric in dict.fromkeys(
        m for run in (left, right) for m in measured(run.summary.get("val") or {})
    ):
        name, ours, theirs = METRICS[metric].says, left.score(metric), right.score(metric)
        by = words.signed(theirs - ours) if ours is not None and theirs is not None else ""
        table.add_row(name, words.score(ours), words.score(theirs), by)
    if (above := (left.above_law, right.above_law)) != (None, None):
        table.add_row(ABOVE_LAW, *map(words.score, above), "")
    for key in LIKE:
        values = (left.status, right.status) if key == "status" else _values(left, right, key)
        table.add_row(key.replace("_", " "), *map(_cell, values), "")
    return table


def _values(left: Run, right: Run, key: str) -> tuple[Any, Any]:
    return left.summary.get(key), right.summary.get(key)


def _settings(left: Mapping[str, Any], right: Mapping[str, Any]) -> Table | str:
    """Return a table of the settings that differ and affect the computation, or a sentence."""
    if not all("data" in config and "trainer" in config for config in (left, right)):
        return "the settings cannot be compared: at least one run has not recorded them"
    found = differences(left, right)
    return _pairs("settings that differ", found) if found else "the settings are equal"


def _pairs(title: str, found: Mapping[str, tuple[Any, Any]]) -> Table:
    table = Table(title=title)
    for column in ("", "A", "B"):
        table.add_column(column, overflow="fold")
    for key, (ours, theirs) in found.items():
        table.add_row(key, words.setting(ours), words.setting(theirs))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return words.NOTHING
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"
    return str(value)
