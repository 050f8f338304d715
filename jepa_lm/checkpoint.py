"""Finding and reading checkpoints: plain tensors and containers, never arbitrary pickles."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from jepa_lm.errors import UserError, warn
from jepa_lm.model import LanguageModel
from jepa_lm.own_classes import require_own_classes

LAST, AUTO = "last", "auto"
LAST_FILE = "last.ckpt"
LOGS = Path("logs")
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,  # NotImplementedError as well
    ValueError,  # UnicodeDecodeError as well
)
"""What reading a damaged archive raises."""
RUNS = "*/*runs/**"
"""Run folders below `LOGS`, single runs and jobs of sweeps."""


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
    """The checkpoint that `ckpt_path` names: a file, a run folder, or `last`.

    In a folder it is the newest one that is whole; damaged ones are named and passed over.

    Raises:
        UserError: nothing there, or nothing whole.
    """
    path = find_file("ckpt_path", value, ("checkpoints/*.ckpt", "*.ckpt"), RUNS)
    if Path(os.path.expanduser(value)).is_file():
        _require_whole(path)
        return path
    found = newest_whole(path.parent)
    assert found is not None
    return found


def find_resume(value: str, run_dir: Path) -> Path | None:
    """The checkpoint that a training run goes on from; None to start at step 0.

    `auto` looks into the run's own folder, `last` for the newest other run. A run that ended before
    its first checkpoint leaves nothing to go on from: training then starts anew, and says so.

    Raises:
        UserError: nothing there that ever was a run, or nothing whole.
    """
    if value == AUTO:
        return newest_whole(run_dir / "checkpoints")
    folder = Path(os.path.expanduser(value))
    if value == LAST and not folder.exists():
        own = run_dir.resolve()
        others = [f for f in LOGS.glob(f"{RUNS}/checkpoints") if f.parent.resolve() != own]
        if not others:
            return find_checkpoint(value)
        folder = max(others, key=lambda f: f.stat().st_mtime_ns).parent
    if not folder.is_dir():
        return find_checkpoint(value)
    was_run = any((folder / name).is_dir() for name in ("checkpoints", ".hydra"))
    if was_run and not checkpoints_in(folder / "checkpoints"):
        warn(f"ckpt_path={value}: {folder} has no checkpoint yet; training starts at step 0")
        return None
    return find_checkpoint(str(folder))


def checkpoints_in(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """Checkpoints in a folder, the newest first; `last.ckpt` stands for the file it is a name of."""
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob(pattern), key=lambda f: f.name == LAST_FILE):
        status = path.stat()
        found[status.st_dev, status.st_ino] = path
    return sorted(found.values(), key=lambda f: f.stat().st_mtime_ns, reverse=True)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that is not damaged; None where there is none at all.

    Raises:
        UserError: all of them are damaged.
    """
    paths = checkpoints_in(folder)
    for path in paths:
        reason = damage(path) or _unreadable(path)
        if reason is None:
            return path
        warn(f"{path}: damaged ({reason})")
    if paths:
        raise UserError(f"ckpt_path={folder}: every checkpoint there is damaged")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, by its checksums; None when it is whole.

    PyTorch writes a checksum for each tensor and does not look at it when it reads.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except BROKEN_ZIP as error:
        return str(error) or type(error).__name__
    return None if entry is None else f"wrong checksum of {entry}"


def _unreadable(path: Path) -> str | None:
    """Why a file whose tensors are whole is no checkpoint: its list of contents has no checksum."""
    try:
        read_checkpoint(path)
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


PREFIXES = {"raw": "model.", "ema": "averages.ema.model.", "swa": "averages.swa.model."}
"""In front of the names of a checkpoint's tensors, by weights."""


def shipped_weights(checkpoint: dict[str, Any]) -> str:
    """Which weights of a checkpoint are scored and exported: `raw`, `ema` or `swa`, as the run chose."""
    return str(checkpoint["shipped"])


def portable(model: dict[str, Any]) -> dict[str, Any]:
    """A model's config without what belongs to the machine it was trained on."""
    return model if "kernel" not in model else {**model, "kernel": "auto"}


def inference_model(checkpoint: dict[str, Any]) -> LanguageModel:
    """The model that ships, built from its config alone and loaded strictly.

    Training-only parts live beside the model, not in it, so nothing is stripped by name.
    """
    model: LanguageModel = instantiate(portable(checkpoint["hyper_parameters"]["config"]["model"]))
    prefix = PREFIXES[shipped_weights(checkpoint)]
    state = checkpoint["state_dict"]
    model.load_state_dict(
        {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)},
        strict=True,
    )
    return model.eval()
