"""Checkpoints of runs, and the model that a checkpoint ships.

The latest checkpoint is the one with the most optimizer steps, whatever its file's date.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from jepa_lm.model import LanguageModel
from jepa_lm.model.checkpoint_file import damage, load, step_of
from jepa_lm.utils.errors import UserError, warn_once_per_machine
from jepa_lm.utils.finding import as_path, newest_run
from jepa_lm.utils.paths import program
from jepa_lm.utils.trusted import Trust, bounded_modules, build_part

LAST_FILE = "last.ckpt"
SAVED = re.compile(r"step-(\d+)\.ckpt")
CHECKPOINTS = ("checkpoints/*.ckpt", "*.ckpt")
TRIES = 10
"""Attempts to read a folder from which a running training may remove the files just listed."""


def find_checkpoint(value: str, trust: Trust | None = None) -> Path:
    """Return the checkpoint that `ckpt_path` names: a file, a run folder, or `last`.

    In a folder, take the intact checkpoint with the most steps; warn about damaged ones and skip them.

    Raises:
        UserError: no checkpoint found, or every one is damaged.
    """
    path = as_path("ckpt_path", value)
    if path.is_file():
        _require_whole(path)
        return path
    if path.exists() and not path.is_dir():
        raise UserError(f"ckpt_path={value}: neither a file nor a folder")
    folder = path if path.is_dir() else newest_run("ckpt_path", value, CHECKPOINTS)
    for place in (folder / "checkpoints", folder):
        if (found := newest_whole(place, trust)) is not None:
            return found
    raise UserError(f"ckpt_path={value}: no {' or '.join(CHECKPOINTS)} in {folder}")


def checkpoints_in(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """Return the checkpoints in a folder, most steps first.

    `last.ckpt` and the file it links to count once. An unreadable file is sorted by the step in its name.
    """
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob(pattern), key=lambda f: f.name == LAST_FILE):
        with suppress(FileNotFoundError):  # a running training may remove it
            if path.is_file():  # skip dangling links and pipes
                status = path.stat()
                found[status.st_dev, status.st_ino] = path
    return sorted(found.values(), key=lambda f: (_step(f), f.name == LAST_FILE), reverse=True)


def _step(path: Path) -> float:
    step = step_of(path)
    if step is not None:
        return step
    named = SAVED.fullmatch(path.name)
    return int(named[1]) if named else float("inf")


def newest_whole(folder: Path, trust: Trust | None = None) -> Path | None:
    """Return the intact checkpoint with the most steps in a folder; None if the folder has no checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """
    for _ in range(TRIES):
        paths = checkpoints_in(folder)
        for path in paths:
            reason = damage(path) or _unreadable(path, trust)
            if reason is None:
                return path
            if path.exists():
                warn_once_per_machine(f"{path}: damaged ({reason})")
        if not paths:
            return None
        if all(path.exists() for path in paths):
            break
    raise UserError(f"ckpt_path={folder}: every checkpoint there is damaged")


def _unreadable(path: Path, trust: Trust | None) -> str | None:
    """Return why a file with correct checksums still cannot be read as a checkpoint; None if it can.

    The pickle that lists its contents has no checksum, so only reading it shows whether it is valid.
    """
    try:
        read_checkpoint(path, trust)
    except UserError as error:
        return str(error)
    return None


def _require_whole(path: Path) -> None:
    reason = damage(path)
    if reason is None:
        return
    others = [p for p in checkpoints_in(path.parent) if damage(p) is None]
    hint = f"; {others[0]} is whole" if others else ""
    raise UserError(
        f"ckpt_path={path}: damaged, or not a checkpoint of {program('train')} ({reason}){hint}"
    )


def read_checkpoint(path: Path, trust: Trust | None = None) -> dict[str, Any]:
    """Return a checkpoint as plain containers and CPU tensors; never run code from the file.

    Raises:
        UserError: the file is damaged, or not a checkpoint of this program.
    """
    return load(path, (trust or Trust()).limits)


PREFIXES = {"raw": "model.", "ema": "averages.ema.model.", "swa": "averages.swa.model."}
"""Prefix of the tensor names in a checkpoint, by weights."""


def shipped_weights(checkpoint: dict[str, Any]) -> str:
    """Return which weights of a checkpoint are scored and exported: `raw`, `ema` or `swa`.

    Raises:
        UserError: the checkpoint names other weights.
    """
    shipped = checkpoint["shipped"]
    if shipped not in PREFIXES:
        raise UserError(f"it ships weights {str(shipped)[:40]!r}, not one of {', '.join(PREFIXES)}")
    return str(shipped)


def portable(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model's config without the settings of the machine it was trained on."""
    return model if "kernel" not in model else {**model, "kernel": "auto"}


def inference_model(
    checkpoint: dict[str, Any], source: str = "the checkpoint", trust: Trust | None = None
) -> LanguageModel:
    """Return the model that ships, built from its config alone and loaded strictly.

    Training-only parts live beside the model, not in it, so nothing is stripped by name. The model is built
    on the meta device and uses the checkpoint's tensors without a copy.

    Raises:
        UserError: the config asks for something not allowed, or the tensors do not match the model.
    """
    prefix = PREFIXES[shipped_weights(checkpoint)]
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    config = portable(checkpoint["hyper_parameters"]["config"]["model"])
    model = empty_model(config, len(state), source, trust or Trust())
    load_strictly(model, state, source)
    return model.eval()


def empty_model(
    config: dict[str, Any], tensors: int, source: str, trust: Trust, values: int | None = None
) -> LanguageModel:
    """Build the model that a config from a file describes, on the meta device (no memory for weights).

    Args:
        tensors: number of tensors in the file; a model with more is not built.
        values: number of values in all tensors together; None bounds them by `limits.bytes` instead.
    """
    with torch.device("meta"), bounded_modules(trust.limits, tensors, values):
        model = build_part("model", config, source, trust)
    if not isinstance(model, LanguageModel):
        raise UserError(
            f"{source}: its config builds a {type(model).__name__}, not a LanguageModel"
        )
    return model


def load_strictly(model: LanguageModel, state: dict[str, torch.Tensor], source: str) -> None:
    """Assign weights to a model without copying them.

    Raises:
        UserError: names, shapes or dtypes differ from the model's.
    """
    expected = model.state_dict()
    if odd := sorted(expected.keys() ^ state.keys()):
        raise UserError(f"{source}: its tensor names differ from those of its model ({odd[0]})")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise UserError(
                f"{source}: {name} is {tuple(tensor.shape)} {tensor.dtype}, but its model expects "
                f"{tuple(expected[name].shape)} {expected[name].dtype}"
            )
    model.load_state_dict(state, strict=True, assign=True)
