"""What a run folder holds: summary.json, config.json and metrics.csv."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from jepa_lm.records import CONFIG_FILE


@dataclass(frozen=True)
class Run:
    """A run that has begun, finished or not."""

    folder: Path

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """summary.json; empty while the run is not over or was killed."""
        return _read_json(self.folder / "summary.json")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json: the resolved config that it was started with."""
        return _read_json(self.folder / CONFIG_FILE)

    @property
    def status(self) -> str:
        """finished, failed, interrupted, or unfinished: no summary yet."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def finished(self) -> bool:
        """It has used up its budget and has a score."""
        return self.status == "finished" and self.bpb is not None

    @cached_property
    def objective(self) -> str | None:
        """The option of the group `objective`, or what the config tells of it."""
        node: Any = read_yaml(self.folder / ".hydra" / "hydra.yaml")
        for key in ("hydra", "runtime", "choices", "objective"):
            node = node.get(key) if isinstance(node, dict) else None
        if node is not None:
            return str(node)
        jepa = self.config.get("jepa")
        if not isinstance(jepa, dict):
            return None
        return str(jepa["_target_"]).rpartition(".")[2] if "_target_" in jepa else "none"

    @property
    def bpb(self) -> float | None:
        """Bits per byte of the final validation."""
        return _score(self.summary, "bpb")

    @property
    def nll(self) -> float | None:
        """Nats per token of the final validation."""
        return _score(self.summary, "nll")

    def series(self, name: str) -> list[tuple[int, float]]:
        """A column of metrics.csv as (step, value), finite values alone."""
        return self._columns.get(name, [])

    @cached_property
    def _columns(self) -> Mapping[str, list[tuple[int, float]]]:
        """Every column that has numbers."""
        found: dict[str, list[tuple[int, float]]] = {}
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return found
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    # Most cells are empty, and a kill may leave half a row.
                    if text and (point := _point(row.get("step"), text)) is not None:
                        found.setdefault(name, []).append(point)
        return found


def find_runs(folder: Path) -> Iterator[Run]:
    """Every run below a folder, by name: folders with a config.json or summary.json of a training."""
    records = [*folder.rglob(CONFIG_FILE), *folder.rglob("summary.json")]
    for path in sorted({path.parent for path in records}):
        yield Run(path)


def _point(step: str | None, text: Any) -> tuple[int, float] | None:
    try:
        point = int(step or ""), float(text)
    except (TypeError, ValueError):
        return None
    return point if math.isfinite(point[1]) else None


def _score(summary: Mapping[str, Any], name: str) -> float | None:
    value = (summary.get("val") or {}).get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """A file of Hydra's, without its references resolved; empty if there is none or it is broken."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except Exception:  # of the disk, of YAML, of OmegaConf; there is no base that they share
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
