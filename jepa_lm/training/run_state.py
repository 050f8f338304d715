"""State that a checkpoint holds beside weights, optimizer and callbacks: clock, random state, averages.

All ranks draw the same numbers: they start from one seed, and whatever differs between them (data, spans)
is drawn from separate generators, so one random state is enough for all.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from jepa_lm.data.stream import TokenStream
from jepa_lm.data.token_data import TokenData
from jepa_lm.objective.latent_monitor import LatentMonitor
from jepa_lm.objective.token_monitor import TokenMonitor
from jepa_lm.optim.muon_adamw import MOMENTS
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.nested import at

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask

WHOLE, SAMPLES, SAMPLED = 1 << 20, 64, 1 << 12
"""Texts up to WHOLE tokens are compared whole, longer ones by SAMPLES pieces of SAMPLED tokens."""
NUMBER = (int, float)
NEEDED: dict[tuple[str, ...], type | tuple[type, ...]] = {
    ("clock", "step"): int,
    ("clock", "elapsed"): NUMBER,
    ("random", "cpu"): Tensor,
    ("averages", "taken"): int,
    ("averages", "best"): (str, type(None)),
    ("averages", "lr_factor"): (*NUMBER, type(None)),
    ("optimizer_states",): list,
    ("lr_schedulers",): list,
    ("loops", "fit_loop"): dict,
    ("callbacks",): dict,
    ("callbacks", "FiniteGuard", "skipped"): int,
}
"""Entries, with their types, that only a resuming run needs from a checkpoint."""
MOST_DEPTH = 40
"""Maximum nesting of a callback's state."""


def save_run_state(task: LanguageModelTask, checkpoint: dict[str, Any]) -> None:
    """Add the run's state to a checkpoint, as plain containers and tensors."""
    data: TokenData = task.trainer.datamodule.data  # type: ignore[attr-defined]
    checkpoint["tokenizer"] = data.tokenizer.fingerprint
    checkpoint["texts"] = fingerprints(data)
    checkpoint["ranks"] = task.trainer.world_size
    checkpoint["shipped"] = task.averages.shipped()
    checkpoint["teacher"] = None if task.objective is None else task.objective.target.record
    checkpoint["averages"] = task.averages.bookkeeping()
    checkpoint["clock"] = task.clock.state_dict()
    checkpoint["random"] = random_state(task.trainer.strategy.root_device)


def load_run_state(task: LanguageModelTask, checkpoint: dict[str, Any]) -> None:
    """Restore what `save_run_state` wrote."""
    task.averages.load_bookkeeping(checkpoint["averages"])
    if task._trainer is None:  # `load_from_checkpoint`, for the weights alone
        return
    task.clock.load_state_dict(checkpoint["clock"])
    restore_random_state(checkpoint["random"], task.trainer.strategy.root_device)


def check_run_state(checkpoint: Mapping[str, Any], source: str) -> None:
    """Check that a run can resume from a checkpoint, whose model may be whole even if it cannot.

    Raises:
        UserError: the checkpoint lacks an entry; names it.
    """
    for where, kind in NEEDED.items():
        node = at(checkpoint, *where)
        if not isinstance(node, kind) or isinstance(node, bool):
            raise lacks(source, ".".join(where))
    try:
        (optimizer,) = checkpoint["optimizer_states"]
        optimizer_groups(optimizer["param_groups"])
        usable = all(isinstance(state, dict) for state in optimizer["state"].values())
    except (AttributeError, KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise lacks(source, "optimizer_states")
    match checkpoint["lr_schedulers"]:
        case [{"last_epoch": int(), "factor": int() | float(), "momentum": int() | float() | None}]:
            pass
        case _:
            raise lacks(source, "lr_schedulers")
    try:
        torch.Generator().set_state(checkpoint["random"]["cpu"].cpu())
    except (RuntimeError, TypeError) as error:
        raise lacks(source, "random.cpu") from error
    _check_callbacks(checkpoint, source)


def _check_callbacks(checkpoint: Mapping[str, Any], source: str) -> None:
    """Check what Lightning and the callbacks read of the callbacks' states."""
    for name, state in checkpoint["callbacks"].items():
        if not isinstance(name, str) or not isinstance(state, dict) or _deeper(state, MOST_DEPTH):
            raise lacks(source, f"callbacks.{str(name)[:80]}")
    for name, kind in (("MeasureObjective", LatentMonitor), ("MeasureTokens", TokenMonitor)):
        monitor = checkpoint["callbacks"].get(name)
        if monitor is not None and not kind.is_state(monitor):
            raise lacks(source, f"callbacks.{name}")
    qat = checkpoint["callbacks"].get("QuantizationAwareTraining", {"first_step": None})
    if type(qat.get("first_step", "")) not in (int, type(None)):
        raise lacks(source, "callbacks.QuantizationAwareTraining")


def _deeper(node: Any, levels: int) -> bool:
    """Return whether containers are nested in more levels than these."""
    if not isinstance(node, dict | list | tuple):
        return False
    below = node.values() if isinstance(node, dict) else node
    return levels == 0 or any(_deeper(entry, levels - 1) for entry in below)


def qat_since(checkpoint: Mapping[str, Any]) -> Any:
    """Return the first step of quantization-aware training in the checkpoint's run, or None."""
    return checkpoint["callbacks"].get("QuantizationAwareTraining", {}).get("first_step")


def check_moments(saved: Mapping[Any, Any], optimizer: Optimizer, source: str) -> None:
    """Check that the shapes of saved moments match those of their parameters, by position.

    Raises:
        UserError: they do not; names the entry.
    """
    groups = [(g["algorithm"], p) for g in optimizer.param_groups for p in g["params"]]
    for place, state in saved.items():
        if not isinstance(place, int) or place not in range(len(groups)):
            raise lacks(source, f"optimizer_states.{place}")
        algorithm, parameter = groups[place]
        expected = MOMENTS[algorithm]
        for key in state.keys() ^ expected if state else ():
            raise lacks(source, f"optimizer_states.{place}.{key}")
        for key, value in state.items():
            shape = () if key == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != shape or value.is_complex():
                raise lacks(source, f"optimizer_states.{place}.{key}")


def lacks(source: str, what: str) -> UserError:
    """Return the error for a checkpoint that a run cannot resume from."""
    return UserError(
        f"{source}: holds no usable {what!r}, so no run can resume from it; was it written by another "
        "version of jepa_lm?"
    )


def optimizer_groups(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return each group's name, algorithm and number of tensors, which its moments belong to."""
    return [f"{g['name']} ({g['algorithm']}, {len(g['params'])} tensors)" for g in groups]


@functools.lru_cache(maxsize=1)
def fingerprints(data: TokenData) -> dict[str, str]:
    """Return a hash of each split's tokens, independent of where its files lie."""
    return {split: _fingerprint(stream) for split, stream in data.streams.items()}


def _fingerprint(stream: TokenStream) -> str:
    found = hashlib.sha256(f"{stream.total} tokens".encode())
    if stream.total <= WHOLE:
        starts, length = [0], stream.total
    else:
        starts = np.linspace(0, stream.total - SAMPLED, SAMPLES).astype(np.int64).tolist()
        length = SAMPLED
    tokens = np.empty(length, dtype=np.int64)
    for start in starts:
        stream.read(start, tokens)
        found.update(tokens.astype("<u4").tobytes())
    return found.hexdigest()[:16]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return PyTorch's random state on the host and on a run's device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore a saved random state; a device of another kind keeps its seed."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
