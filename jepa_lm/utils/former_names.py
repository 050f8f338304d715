"""Classes that had another name: what was written under it is read on.

A class path is part of what lies on disks: `_target_` in checkpoints, in records of runs, in users' YAML.
Hashes of configs are taken of the first name that a class had, so that they stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCHEDULES = (
    "After",
    "Constant",
    "EveryNth",
    "Linear",
    "LogAnneal",
    "Phased",
    "Ramp",
    "Warmdown",
    "Warmup",
)
FORMER = {
    **{
        f"jepa_lm.optim.schedule.{name}": f"jepa_lm.schedules.factors.{name}" for name in _SCHEDULES
    },
    "jepa_lm.callbacks.progress.TrainingBar": "jepa_lm.training.callbacks.progress.TrainingBar",
    "jepa_lm.distributed.DDP": "jepa_lm.training.distributed.DDP",
    "jepa_lm.objective.diagnostics.Diagnostics": "jepa_lm.objective.diagnostics.MonitorSettings",
    "jepa_lm.quantization.calibration.Calibration": "jepa_lm.quantization.calibration.GPTQSettings",
    "jepa_lm.quantization.training.TrainingPlan": "jepa_lm.quantization.qat.QATSchedule",
}
"""From the first name of a class to the one that it has today."""
FIRST = {today: first for first, today in FORMER.items()}


def modern(node: Any) -> Any:
    """A config with the names that classes have today."""
    return _renamed(node, FORMER)


def first(node: Any) -> Any:
    """A config with the first names of its classes."""
    return _renamed(node, FIRST)


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, Mapping):
        return {
            key: names.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else _renamed(value, names)
            for key, value in node.items()
        }
    return [_renamed(entry, names) for entry in node] if isinstance(node, list) else node
