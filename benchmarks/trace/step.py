"""One GPU's share of a preset's step, on fake CUDA tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from benchmarks.models import compose
from benchmarks.trace.device import DEVICE
from jepa_lm.data.stream import Batch
from jepa_lm.objective import StepContext, views
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.estimate import tokens_of_a_gpu
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve

STEP, STEPS = 700, 1000
"""Where in a run the step is: every objective takes part there."""
OBJECTIVES = "jepa_lm.objective."


@dataclass(frozen=True)
class Traced:
    """A task on the fake device, and a micro-batch for it."""

    task: LanguageModelTask
    mode: FakeTensorMode
    batch: Batch

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.batch["inputs"].numel()

    def drawn(self) -> StepContext | None:
        """Return the context of the step with its draws made; None without an objective."""
        task = self.task
        if task.objective is None:
            return None
        return task.objective.draw(self.batch["inputs"], StepContext(task.clock))


def prepare(preset: str, overrides: Sequence[str]) -> Traced:
    """Build the task of a preset; the pretended device must be there already."""
    torch.set_num_threads(1)
    cfg = compose(f"experiment={preset}", "paths.run_dir=unused", "compile=false", *overrides)
    clock = ProgressClock(max_steps=STEPS, max_time=None)
    clock.step = STEP
    with mock.patch.object(nn.init, "orthogonal_", lambda tensor, *args, **settings: tensor):
        task = LanguageModelTask(resolve(cfg), clock)  # values do not matter
    assert task.objective is None or task.objective.active(clock)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _move(task, mode)
    _in_objectives("on_device", _arrives(mode))
    _in_objectives("draw_now", _with_values(lambda draw, *arguments: draw(*arguments)))
    vars(views)["maybe_mark_dynamic"] = lambda *args: None
    if task.objective is not None:  # draws are made on the host, with values
        task.objective.draw = _with_values(task.objective.draw)  # type: ignore[method-assign]
    data = task.config["data"]
    rows = tokens_of_a_gpu(task.config) // data["seq_len"]
    with mode:
        tokens = torch.empty(rows, data["seq_len"] + 1, dtype=torch.int64, device=DEVICE)
        batch: Batch = {
            "inputs": tokens[:, :-1].contiguous(),
            "targets": tokens[:, 1:].contiguous(),
        }
    return Traced(task, mode, batch)


def autocast() -> AbstractContextManager[Any]:
    """Return the number format that a GPU computes these presets in."""
    return torch.autocast("cuda", torch.bfloat16)


def _move(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter and buffer by a fake one on the device."""

    def moved(tensor: Tensor) -> Tensor:
        fake = tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)
        return fake.to(DEVICE)

    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with mode:
        module._apply(moved)


def _in_objectives(name: str, stand_in: Callable[..., Any]) -> None:
    """Replace a function in all modules of objectives that call it by its name."""
    for module in [m for n, m in sys.modules.items() if n.startswith(OBJECTIVES)]:
        if name in vars(module):
            vars(module)[name] = stand_in


def _arrives(mode: FakeTensorMode) -> Callable[[Tensor, torch.device], Tensor]:
    """Return `on_device` for fake tensors, which are not pinned."""
    return lambda tensor, device: mode.from_tensor(tensor).to(device)


def _with_values(draw: Callable[..., Any]) -> Callable[..., Any]:
    def drawn(*args: Any) -> Any:
        with unset_fake_temporarily():
            return draw(*args)

    return drawn
