"""What configs looked like before, so that files written then can still be read.

Class paths are stored on disk: as `_target_` in checkpoints, in records of runs and in users' YAML. Config
hashes use the first name of each class, so that they do not change when a class is renamed, and leave out
a setting that was added later, where it says what the class did before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


MODEL = "jepa_lm.model.LanguageModel"
ADDED: dict[str, dict[str, Any]] = {
    MODEL: {"residual": "float32", "dropout": 0.0},
    "jepa_lm.data.token_data.TokenData": {
        "noise": None,
        "tuning": None,
        "validate_on": "validation",
    },
    "lightning.pytorch.Trainer": {"max_epochs": None},
    "jepa_lm.data.rows.GeneratedRows": {"decode_rows": 256, "probe_rows": 2048},
}
"""Settings that classes got later, by class, with the values that files without them imply."""


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


def modern(node: Any, *, composed: bool = False) -> Any:
    """Return a config with the current names of its classes, and all of their settings.

    Args:
        composed: it comes from YAML of this day, not from the record of a run; values mean what they say.
    """

    def whole(target: str, found: dict[str, Any]) -> dict[str, Any]:
        today = FORMER.get(target, target)
        old = not composed and today == MODEL and "residual" not in found
        if old and found.get("kernel") == "triton":
            # In records of before there were kernels of our own; `residual` came half an hour after them.
            found = {**found, "kernel": "mamba_ssm"}
        return {**ADDED.get(today, {}), **found}

    return _changed(node, whole, FORMER)


def first(node: Any) -> Any:
    """Return a config with the first names of its classes, and without later settings that change nothing."""

    def without(target: str, found: dict[str, Any]) -> dict[str, Any]:
        implied = ADDED.get(target, {})
        return {k: v for k, v in found.items() if k not in implied or v != implied[k]}

    return _changed(node, without, FIRST)


def _changed(
    node: Any, settings: Callable[[str, dict[str, Any]], dict[str, Any]], names: Mapping[str, str]
) -> Any:
    """Return a copy with other settings and other names of classes."""
    if isinstance(node, list):
        return [_changed(entry, settings, names) for entry in node]
    if not isinstance(node, Mapping):
        return node
    found = {key: _changed(value, settings, names) for key, value in node.items()}
    target = found.get("_target_")
    if not isinstance(target, str):
        return found
    found = settings(target, found)
    return {**found, "_target_": names.get(target, target)}
