"""Checkpoints of runs, and the model that ships in one.

Which is newest is decided by the step that it was saved after.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from jepa_lm.model import LanguageModel
from jepa_lm.model.checkpoint_file import damage, load, step_of
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.finding import as_path, newest_run
from jepa_lm.utils.trusted import Trust, bounded_modules, build_part

LAST_FILE = "last.ckpt"
SAVED = re.compile(r"step-(\d+)\.ckpt")
CHECKPOINTS = ("checkpoints/*.ckpt", "*.ckpt")
TRIES = 10
"""Looks into a folder in which a training removes what has just been found there."""


def find_checkpoint(value: str, trust: Trust | None = None) -> Path:
    """The checkpoint that `ckpt_path` names: a file, a run folder, or `last`.

    In a folder it is the one of the most steps that is whole; damaged ones are named and passed over.

    Raises:
        UserError: nothing there, or nothing whole.
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
    """Checkpoints in a folder, the one of the most steps first.

    `last.ckpt` stands for the file it is a name of. One that cannot be read comes where its name puts it.
    """
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob(pattern), key=lambda f: f.name == LAST_FILE):
        with suppress(FileNotFoundError):  # a training beside may remove it
            if path.is_file():  # neither a dangling link nor a pipe
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
    """The checkpoint of the most steps in a folder that is not damaged; None where there is none at all.

    Raises:
        UserError: all of them are damaged.
    """
    for _ in range(TRIES):
        paths = checkpoints_in(folder)
        for path in paths:
            reason = damage(path) or _unreadable(path, trust)
            if reason is None:
                return path
            if path.exists():
                warn(f"{path}: damaged ({reason})")
        if not paths:
            return None
        if all(path.exists() for path in paths):
            break
    raise UserError(f"ckpt_path={folder}: every checkpoint there is damaged")


def _unreadable(path: Path, trust: Trust | None) -> str | None:
    """Why a file whose tensors are whole is no checkpoint: its list of contents has no checksum."""
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
    raise UserError(f"ckpt_path={path}: damaged, or not a checkpoint of train.py ({reason}){hint}")


def read_checkpoint(path: Path, trust: Trust | None = None) -> dict[str, Any]:
    """A checkpoint as plain containers and tensors on the CPU; code in it is never run.

    Raises:
        UserError: damaged, or not a checkpoint of this program.
    """
    return load(path, (trust or Trust()).limits)


PREFIXES = {"raw": "model.", "ema": "averages.ema.model.", "swa": "averages.swa.model."}
"""In front of the names of a checkpoint's tensors, by weights."""


def shipped_weights(checkpoint: dict[str, Any]) -> str:
    """Which weights of a checkpoint are scored and exported: `raw`, `ema` or `swa`, as the run chose.

    Raises:
        UserError: none of these.
    """
    shipped = checkpoint["shipped"]
    if shipped not in PREFIXES:
        raise UserError(f"it ships {str(shipped)[:40]!r}, which is none of {', '.join(PREFIXES)}")
    return str(shipped)


def portable(model: dict[str, Any]) -> dict[str, Any]:
    """A model's config without what belongs to the machine it was trained on."""
    return model if "kernel" not in model else {**model, "kernel": "auto"}


def inference_model(
    checkpoint: dict[str, Any], source: str = "the checkpoint", trust: Trust | None = None
) -> LanguageModel:
    """The model that ships, built from its config alone and loaded strictly.

    Training-only parts live beside the model, not in it, so nothing is stripped by name. The model is built
    without memory for its weights and takes over the checkpoint's.

    Raises:
        UserError: a config that asks for what it may not, or tensors that are not its model's.
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
    """The model that a config out of a file describes, without memory for its weights.

    Args:
        tensors: that the file holds; a model of more is not built. values: of all of them together.
    """
    with torch.device("meta"), bounded_modules(trust.limits, tensors, values):
        model = build_part("model", config, source, trust)
    if not isinstance(model, LanguageModel):
        raise UserError(
            f"{source}: its config builds a {type(model).__name__}, not a LanguageModel"
        )
    return model


def load_strictly(model: LanguageModel, state: dict[str, torch.Tensor], source: str) -> None:
    """Give a model its weights, which are taken over as they are.

    Raises:
        UserError: names, shapes or types that are not the model's.
    """
    expected = model.state_dict()
    if odd := sorted(expected.keys() ^ state.keys()):
        raise UserError(f"{source}: its tensors are not those of its model ({odd[0]})")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise UserError(
                f"{source}: {name} is {tuple(tensor.shape)} {tensor.dtype}, its model has "
                f"{tuple(expected[name].shape)} {expected[name].dtype}"
            )
    model.load_state_dict(state, strict=True, assign=True)
