"""Check that an interrupted run equals an uninterrupted one: every number, every row, every byte."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from jepa_lm.model.checkpoint import read_checkpoint

BY_THE_CLOCK = {"train/seconds", "train/tokens_per_second"}


class DifferenceError(AssertionError):
    """The interrupted work differs from the uninterrupted one."""


def leaves(path: str, value: Any) -> dict[str, Any]:
    """Flatten a nested state into one mapping."""
    parts = value.items() if isinstance(value, dict) else None
    if isinstance(value, list | tuple):
        parts = enumerate(value)
    if parts is None:
        return {path: value}
    return {k: v for key, node in parts for k, v in leaves(f"{path}.{key}", node).items()}


def same(one: Any, two: Any) -> bool:
    if torch.is_tensor(one):
        return torch.is_tensor(two) and torch.equal(one, two) and one.dtype == two.dtype
    return type(one) is type(two) and one == two


def rows_of(folder: Path, *, timed: bool) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    left_out = {"train/tokens_per_second"} if timed else BY_THE_CLOCK
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


def compare_runs(whole: Path, killed: Path, *, timed: bool = False) -> dict[str, int]:
    """Compare everything in two run folders except paths and clock times.

    Args:
        timed: the clock was simulated, so times are compared as well.
    """
    a, b = (leaves("", _state(folder, timed)) for folder in (whole, killed))
    differing = [key for key in sorted(a.keys() | b.keys()) if not same(a.get(key), b.get(key))]
    if differing:
        raise DifferenceError(f"{killed}: {len(differing)} values differ, {differing[:3]}")
    rows = [rows_of(folder, timed=timed) for folder in (whole, killed)]
    if rows[0] != rows[1]:
        pairs = itertools.zip_longest(*rows)
        first = next(i for i, (x, y) in enumerate(pairs) if x != y)
        raise DifferenceError(f"{killed}: row {first}: {[r[first : first + 1] for r in rows]}")
    scores = [json.loads((f / "summary.json").read_text())["val"] for f in (whole, killed)]
    names = [sorted(p.name for p in (f / "checkpoints").iterdir()) for f in (whole, killed)]
    if scores[0] != scores[1] or names[0] != names[1] or _left_behind(killed):
        raise DifferenceError(f"{killed}: {scores} {names} {_left_behind(killed)}")
    return {
        "tensors": sum(torch.is_tensor(value) for value in a.values()),
        "rows": len(rows[0]),
        "validations": sum(bool(row.get("val/bpb")) for row in rows[0]),
    }


def _state(folder: Path, timed: bool) -> dict[str, Any]:
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    left_out = {"hyper_parameters", "loops", "callbacks"}  # paths; this start's counters
    if not timed:
        state["clock"].pop("elapsed")
    return {key: value for key, value in state.items() if key not in left_out}


def _left_behind(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*.tmp")]


def compare_files(whole: Path, killed: Path, *ignored: str) -> dict[str, int]:
    """Compare every byte of every file in two folders."""
    a, b = (
        {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and not any(word in p.name for word in ignored)
        }
        for folder in (whole, killed)
    )
    if a != b:
        odd = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
        raise DifferenceError(f"{killed}: files differ: {odd[:5]}")
    return {"files": len(a), "bytes": sum(map(len, a.values()))}
