"""Finding checkpoints, and the model that ships in one.

What is newest is decided by contents: the step that a checkpoint was saved after, the time in the name of a
run's folder. Times of files say when somebody copied them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from jepa_lm.artifact.publishing import counting
from jepa_lm.checkpoint_file import damage, load, step_of
from jepa_lm.errors import UserError, warn
from jepa_lm.model import LanguageModel
from jepa_lm.trusted import Trust, bounded_modules, build_part

LAST, AUTO = "last", "auto"
LAST_FILE = "last.ckpt"
LOGS = Path("logs")
KINDS = ("runs", "multiruns")
"""Folders below a task's that hold run folders: single runs, and sweeps with their jobs."""
STARTED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")
"""Name of a run's folder, or of its sweep's: when it was started."""
SAVED = re.compile(r"step-(\d+)\.ckpt")
CHECKPOINTS = ("checkpoints/*.ckpt", "*.ckpt")
TRIES = 10
"""Looks into a folder in which a training removes what has just been found there."""
DEEPEST = 6
"""Levels below `runs` that are searched: a job of a study lies three below its sweep."""


def find_file(key: str, value: str, patterns: tuple[str, ...]) -> Path:
    """The file that a setting names.

    Args:
        key: the setting, for messages.
        value: a file, a run folder, or `last` for the newest run that has one.
        patterns: of files in a run folder.

    Raises:
        UserError: nothing there, or several.
    """
    path = as_path(key, value)
    if path.is_file():
        return path
    if path.exists() and not path.is_dir():
        raise UserError(f"{key}={value}: neither a file nor a folder")
    if not path.is_dir():
        path = _newest_run(key, value, patterns)
    found = _files_in(path, patterns)
    if not found:
        raise UserError(f"{key}={value}: no {' or '.join(patterns)} in {path}")
    if len(found) > 1 and (named := counting(found)) is not None:
        return named  # a kill during an export has left another
    if len(found) > 1:
        names = ", ".join(sorted(f.name for f in found)[:5])
        raise UserError(f"{key}={value}: several files in {path} ({names}); name one of them")
    return found[0]


def as_path(key: str, value: str) -> Path:
    """The path that a setting holds.

    Raises:
        UserError: no path can be such a text.
    """
    path = Path(os.path.expanduser(value))
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={value[:80]!r}: no path ({reason})") from error
    return path


def _files_in(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [f for pattern in patterns for f in folder.glob(pattern) if f.is_file()]


def runs_below(folder: Path) -> list[Path]:
    """Run folders below a folder of logs that hold checkpoints, artifacts or records, the newest last.

    The time of a start is in a run's path, whatever has been done to the files since; runs in folders of
    other names come before those, by the times of their files.
    """
    found: set[Path] = set()
    for kind in KINDS:
        for runs in folder.glob(f"**/{kind}"):
            for depth in range(1, DEEPEST):
                below = (f for f in runs.glob("*/" * depth) if not f.name.startswith("."))
                found.update(f for f in below if f.name != "checkpoints" and _is_run(f))
    return sorted(found, key=_started)


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or any(folder.glob("artifact.*"))


def _started(folder: Path) -> tuple[str, float]:
    times = [part for part in folder.parts if STARTED.fullmatch(part)]
    return (times[-1] if times else "", folder.stat().st_mtime)


def _newest_run(key: str, value: str, patterns: tuple[str, ...], but: Path | None = None) -> Path:
    """The folder of the newest run that has such a file; `but` is passed over.

    Raises:
        UserError: `value` is not `last`, or there is none.
    """
    if value != LAST:
        raise UserError(
            f"{key}={value}: no such file or folder; give a file, a run folder, or last"
        )
    for run in reversed(runs_below(LOGS)):
        if but is not None and run.resolve() == but.resolve():
            continue
        if _files_in(run, patterns):
            return run
        warn(f"{key}=last: {run} has no {' or '.join(patterns)}; an older run is taken")
    raise UserError(f"{key}={value}: no {' or '.join(patterns)} in any run below {LOGS.resolve()}")


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
    folder = path if path.is_dir() else _newest_run("ckpt_path", value, CHECKPOINTS)
    for place in (folder / "checkpoints", folder):
        if (found := newest_whole(place, trust)) is not None:
            return found
    raise UserError(f"ckpt_path={value}: no {' or '.join(CHECKPOINTS)} in {folder}")


def find_resume(value: str, run_dir: Path, trust: Trust | None = None) -> Path | None:
    """The checkpoint that a training run goes on from; None to start at step 0.

    `auto` looks into the run's own folder, and starts where there is none yet; `last` takes the newest other
    run that has one.

    Raises:
        UserError: nothing there, or nothing whole.
    """
    if value == AUTO:
        return newest_whole(run_dir / "checkpoints", trust)
    if value == LAST and not as_path("ckpt_path", value).exists():
        newest = _newest_run("ckpt_path", value, CHECKPOINTS, but=run_dir)
        return find_checkpoint(str(newest), trust)
    return find_checkpoint(value, trust)


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
