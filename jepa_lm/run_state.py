"""What a checkpoint of a run holds beside weights and optimizer: clock, random numbers, bookkeeping.

All ranks draw alike: they start from one seed, and what differs between them (data, spans) is drawn
from generators of its own, so one random state stands for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jepa_lm.lit import LanguageModelTask


def save_run_state(task: LanguageModelTask, checkpoint: dict[str, Any]) -> None:
    """Write it into a checkpoint, as plain containers and tensors."""
    checkpoint["tokenizer"] = task.trainer.datamodule.data.tokenizer.fingerprint  # type: ignore[attr-defined]
    checkpoint["shipped"] = task.averages.shipped()
    checkpoint["averages"] = task.averages.bookkeeping()
    if task.clock is not None:
        checkpoint["clock"] = task.clock.state_dict()
        checkpoint["random"] = random_state(task.trainer.strategy.root_device)
        checkpoint["skipped"] = task.guard.skipped
    if task.stored is not None:
        checkpoint["stored_since"] = task.stored.first_step
    if task.watch is not None:
        checkpoint["watch"] = task.watch.state_dict()


def load_run_state(task: LanguageModelTask, checkpoint: dict[str, Any]) -> None:
    """Go on from it; without a clock (to evaluate) only what the weights need."""
    task.averages.load_bookkeeping(checkpoint["averages"])
    if task.clock is not None:
        task.clock.load_state_dict(checkpoint["clock"])
        restore_random_state(checkpoint["random"], task.trainer.strategy.root_device)
        task.guard.skipped = checkpoint["skipped"]
    if task.stored is not None:
        task.stored.first_step = checkpoint.get("stored_since")
    if task.watch is not None and "watch" in checkpoint:
        task.watch.load_state_dict(checkpoint["watch"])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """PyTorch's, of the host and of a run's device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on drawing where it was taken; another kind of device starts from its seed."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
