"""Finding and reading checkpoints: plain tensors and containers, never arbitrary pickles."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from jepa_lm.errors import UserError
from jepa_lm.model import LanguageModel
from jepa_lm.own_classes import require_own_classes

LAST = "last"
LOGS = Path("logs")


def find_file(key: str, value: str, patterns: tuple[str, ...], under: str) -> Path:
    """The file that a setting names.

    Args:
        key: the setting, for messages.
        value: a file, a run folder, or `last` for the newest run that has one.
        patterns: of files in a run folder. under: pattern of run folders below logs/.

    Raises:
        UserError: nothing there.
    """
    path = Path(os.path.expanduser(value))
    if path.is_file():
        return path
    if path.is_dir():
        found = [f for pattern in patterns for f in path.glob(pattern)]
        place = f"{path}"
    elif value == LAST:
        found = [f for p in patterns for f in LOGS.glob(f"{under}/{p}")]
        place = f"any run below {LOGS.resolve()}"
    else:
        raise UserError(
            f"{key}={value}: no such file or folder; give a file, a run folder, or last"
        )
    if not found:
        raise UserError(f"{key}={value}: no {' or '.join(patterns)} in {place}")
    return max(found, key=lambda f: f.stat().st_mtime_ns)


def find_checkpoint(value: str) -> Path:
    """The checkpoint that `ckpt_path` names: a file, a run folder, or `last`."""
    return find_file("ckpt_path", value, ("checkpoints/last.ckpt", "last.ckpt"), "*/*runs/**")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain containers and tensors on the CPU; code in it is never run.

    Raises:
        UserError: damaged, or not a checkpoint of this program.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = checkpoint["hyper_parameters"]["config"]
        checkpoint["state_dict"]
    except pickle.UnpicklingError as error:
        raise UserError(
            f"ckpt_path={path}: damaged, or not a checkpoint of train.py (it holds more than tensors "
            "and plain values)"
        ) from error
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0][:160]
        raise UserError(
            f"ckpt_path={path}: damaged, or not a checkpoint of train.py ({type(error).__name__}: "
            f"{reason})"
        ) from error
    for part in ("model", "data", "optimizer", "quantization"):
        require_own_classes(config[part], "jepa_lm", f"ckpt_path={path}")
    return checkpoint


AVERAGE, RAW = "average.model.", "model."
"""In front of the names of a checkpoint's tensors."""


def shipped_weights(checkpoint: dict[str, Any]) -> str:
    """Which weights of a checkpoint are scored and exported: `ema` where there are any, else `raw`."""
    averaged = any(name.startswith(AVERAGE) for name in checkpoint["state_dict"])
    return "ema" if averaged else "raw"


def portable(model: dict[str, Any]) -> dict[str, Any]:
    """A model's config without what belongs to the machine it was trained on."""
    return model if "kernel" not in model else {**model, "kernel": "auto"}


def inference_model(checkpoint: dict[str, Any]) -> LanguageModel:
    """The model that ships, built from its config alone and loaded strictly.

    Training-only parts live beside the model, not in it, so nothing is stripped by name.
    """
    model: LanguageModel = instantiate(portable(checkpoint["hyper_parameters"]["config"]["model"]))
    prefix = AVERAGE if shipped_weights(checkpoint) == "ema" else RAW
    state = checkpoint["state_dict"]
    model.load_state_dict(
        {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)},
        strict=True,
    )
    return model.eval()
