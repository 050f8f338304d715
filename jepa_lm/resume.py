"""Whether a checkpoint is one that this run can go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jepa_lm.checkpoint import portable, read_checkpoint
from jepa_lm.errors import UserError
from jepa_lm.lit import LanguageModelTask
from jepa_lm.trusted import Trust


def check_resumable(resume: Path, task: LanguageModelTask, trust: Trust | None = None) -> None:
    """Refuse to continue a run of another model, or with other parts beside it."""
    checkpoint = read_checkpoint(resume, trust)
    before = _leaves("model", portable(checkpoint["hyper_parameters"]["config"]["model"]))
    now = _leaves("model", portable(task.config["model"]))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"ckpt_path={resume}: was trained with another {key} ({before.get(key)}, now "
                f"{now.get(key)}); resume with the settings of that run"
            )
    was, accumulate = (
        c["trainer"]["accumulate_grad_batches"]
        for c in (checkpoint["hyper_parameters"]["config"], task.config)
    )
    if was != accumulate:
        raise UserError(
            f"ckpt_path={resume}: was trained with trainer.accumulate_grad_batches={was}, now {accumulate}; "
            "the place in the data would not be the same"
        )
    jepa = [
        _leaves("jepa", c["jepa"]) for c in (checkpoint["hyper_parameters"]["config"], task.config)
    ]
    for key in sorted(k for k in jepa[0].keys() | jepa[1].keys() if k.endswith("_target_")):
        if jepa[0].get(key) != jepa[1].get(key) and "schedule" not in key:
            raise UserError(
                f"ckpt_path={resume}: was trained with another {key} ({jepa[0].get(key)}, now "
                f"{jepa[1].get(key)}); resume with the objective and average of that run"
            )
    shapes = {name: tuple(x.shape) for name, x in checkpoint["state_dict"].items()}
    mine = {name: tuple(x.shape) for name, x in task.state_dict().items()}
    for name in sorted(shapes.keys() | mine.keys()):
        if shapes.get(name) != mine.get(name):
            raise UserError(
                f"ckpt_path={resume}: {name} has shape {shapes.get(name)} there, {mine.get(name)} "
                "here; resume with the objective and average of that run"
            )


def _leaves(path: str, node: Any) -> dict[str, Any]:
    """A nested config as dotted keys."""
    if not isinstance(node, dict):
        return {path: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _leaves(f"{path}.{key}", value)
    return found
