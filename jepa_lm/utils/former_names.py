"""Former names of classes, so that files written with them can still be read.

Class paths are stored on disk: as `_target_` in checkpoints, in records of runs and in users' YAML. Config
hashes use the first name of each class, so that they do not change when a class is renamed.
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
"""Maps the first name of a class to its current name."""
FIRST = {today: first for first, today in FORMER.items()}


FORMER_STATES = {
    "skipped": ("FiniteGuard", "skipped"),
    "stored_since": ("QuantizationAwareTraining", "first_step"),
    "watch": ("MeasureObjective", None),
}
"""From a former key of a checkpoint to the callback that keeps the state today, and the key there, if any."""


def modern_states(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with the states of callbacks under `callbacks`, where they lie today."""
    states = checkpoint.get("callbacks")
    if not isinstance(states, dict):
        return checkpoint
    former = {
        name: checkpoint[place] if key is None else {key: checkpoint[place]}
        for place, (name, key) in FORMER_STATES.items()
        if place in checkpoint
    }
    kept = {key: value for key, value in checkpoint.items() if key not in FORMER_STATES}
    return {**kept, "callbacks": {**former, **states}}


def modern(node: Any) -> Any:
    """Return a config with the current names of its classes."""
    return _renamed(node, FORMER)


def first(node: Any) -> Any:
    """Return a config with the first names of its classes."""
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
