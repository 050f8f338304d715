"""Training FLOPs and parameters of a run.

FLOPs are counted while a micro-batch of the run's real shape goes forward and backward on PyTorch's meta
device, so the products of any backbone and any loss are seen: matrix products, convolutions, attention.
Element-wise work is not counted, nor is what a fast path computes twice to save memory, as is usual for
model FLOPs (MFU).
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.objective.auxiliary_loss import AuxiliaryLoss, main_needs
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.teacher import OpenTeacher
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.auxiliary import active_of
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.compiling import processes
from jepa_lm.utils.errors import warn_once_per_machine
from jepa_lm.utils.quoting import one_line

AnyModule = TypeVar("AnyModule", bound=nn.Module)
MOMENTS = 10_000
"""Steps of a run, at most, at which active losses are looked for."""
FEWEST_ROWS = 2
"""Regularizers over rows need at least two."""
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Of `scaled_dot_product_attention`, in their order."""
_counted: dict[str, int] = {}
"""What was counted in this process, by the settings that determine it."""


def count_parameters(module: nn.Module) -> int:
    """Return the number of values in all parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


class _Attention(torch.autograd.Function):
    """Attention that computes nothing but the shape of its result, and counts its products."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, total: list[int]
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.total = total
        # Scores and their product with the values; under a causal mask half of each is needed.
        pairs = math.prod(q.shape[:-1]) * k.shape[-2]
        ctx.flops = 2 * pairs * (q.shape[-1] + v.shape[-1]) // (2 if causal else 1)
        total[0] += ctx.flops
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.total[0] += 2 * ctx.flops
        return (*map(torch.empty_like, ctx.saved_tensors), None, None)


class CountAttention(TorchFunctionMode):
    """Counts attention, which the meta device would compute as plain products without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.total = [0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        # Every mask of a language model hides the future.
        causal = bool(given.get("is_causal")) or given.get("attn_mask") is not None
        return _Attention.apply(given["query"], given["key"], given["value"], causal, self.total)


def count_flops(
    model: LanguageModel,
    objectives: Mapping[str, AuxiliaryLoss],
    rows: int,
    seq_len: int,
) -> int:
    """Return the FLOPs of one forward and backward pass over a micro-batch.

    Args:
        model, objectives: on the meta device. objectives: by key; none for cross entropy alone.
        rows: of the micro-batch; a loss that compares rows with each other costs more, the more there are.
    """
    inputs = torch.zeros(rows, seq_len, dtype=torch.long, device="meta")
    needs = main_needs(model, objectives.values())
    with FlopCounterMode(display=False) as products, CountAttention() as attention:
        logits, main = model(inputs, *needs)
        loss = token_nll(logits, inputs).mean()
        step_context = StepContext.at_start()  # one for all: losses may share a pass
        for objective in objectives.values():
            loss = loss + objective(model, objective.stand_in(inputs), main, step_context)
        loss.backward()
    return products.get_total_flops() + attention.total[0]


def model_flops_per_token(model: LanguageModel, seq_len: int) -> int:
    """Return the training FLOPs of cross entropy per token."""
    return count_flops(on_meta(model), {}, 1, seq_len) // seq_len


def flops_per_token(task: LanguageModelTask) -> dict[str, int]:
    """Return training FLOPs per token of a step with all losses: of cross entropy, and what the others add.

    Empty, with a warning, if a part of the user's own cannot run on the meta device.
    """
    try:
        alone, together = _counted_with(task, ()), _counted_with(task, _weighted(task))
    except Exception as error:
        return _not_counted(error)
    tokens = _counted_tokens(task)
    return {"model": alone // tokens, "objective": (together - alone) // tokens}


def flops_of_run(task: LanguageModelTask, steps: int) -> dict[str, int]:
    """Return the same, averaged over the steps that a run has taken: a loss counts while it is active."""
    found = flops_per_token(task)
    if found and steps:
        try:
            average = _average(task, steps, task.clock.elapsed)
        except Exception as error:
            return _not_counted(error)
        found["objective"] = max(0, round(average) - found["model"])
    return found


def _not_counted(error: Exception) -> dict[str, int]:
    """Say why: code of the user's own failed, and the run's other figures must not be lost."""
    warn_once_per_machine(f"FLOPs are not counted: {type(error).__name__}: {one_line(error)}")
    return {}


def flops_of(config: Mapping[str, Any], open_teacher: OpenTeacher) -> float:
    """Return the training FLOPs per token of a run with this resolved config, averaged over its steps."""
    return _average(outline(config, open_teacher), config["trainer"]["max_steps"], seconds=0.0)


def _average(task: LanguageModelTask, steps: int, seconds: float) -> float:
    """Return FLOPs per token, averaged over these first steps, which took equally long."""
    clock = ProgressClock(max_steps=task.clock.max_steps, max_time=task.clock.max_time)
    objectives, seen = task.auxiliaries, Counter[frozenset[str]]()
    # Drawn: every so many steps would miss what a loss does every so many steps.
    for step in random.Random(0).sample(range(steps), min(steps, MOMENTS)):
        clock.load_state_dict({"step": step, "elapsed": seconds * step / steps})
        seen[active_of(objectives, clock)] += 1
    total = sum(times * _counted_with(task, active) for active, times in seen.items())
    return total / seen.total() / _counted_tokens(task)


def _counted_with(task: LanguageModelTask, active: Iterable[str]) -> int:
    """Return the FLOPs of a micro-batch with these losses beside cross entropy."""
    config, keys = task.config, sorted(active)
    rows, seq_len = _counted_rows(task), config["data"]["seq_len"]
    losses = [config["jepa"], config.get("tokens"), keys]
    decides = json.dumps([config["model"], losses, task.frozen, seq_len, rows])
    if decides not in _counted:  # takes a second, and jobs of a sweep often share it
        objectives = {key: on_meta(task.auxiliaries[key]) for key in keys}
        _counted[decides] = count_flops(on_meta(task.model), objectives, rows, seq_len)
    return _counted[decides]


def _counted_rows(task: LanguageModelTask) -> int:
    return max(micro_batch_rows(task), FEWEST_ROWS)


def _counted_tokens(task: LanguageModelTask) -> int:
    return _counted_rows(task) * int(task.config["data"]["seq_len"])


class _NotOrthogonal(TorchFunctionMode):
    """Leaves out the factorizations of orthogonal initial values: seconds, where only shapes matter."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.linalg.qr:
            return args[0], torch.eye(args[0].shape[-1])
        return func(*args, **(kwargs or {}))


def outline(config: Mapping[str, Any], open_teacher: OpenTeacher) -> LanguageModelTask:
    """Return the task of a run with this resolved config, to be counted and not to be trained."""
    with _NotOrthogonal():
        return LanguageModelTask(copy.deepcopy(dict(config)), open_teacher=open_teacher)


def weighted(task: LanguageModelTask) -> dict[str, AuxiliaryLoss]:
    """Return copies on the meta device of the objectives that have a weight, by key."""
    return {key: on_meta(task.auxiliaries[key]) for key in _weighted(task)}


def _weighted(task: LanguageModelTask) -> list[str]:
    """Return the keys of the objectives that have a weight."""
    return [key for key, objective in task.auxiliaries.items() if objective.weight]


def on_meta(module: AnyModule) -> AnyModule:
    """Return a copy on the meta device, without copying any weight."""
    parameters = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    buffers = {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    return copy.deepcopy(module, {**parameters, **buffers})


def micro_batch_rows(task: LanguageModelTask) -> int:
    """Return the rows of a rank's micro-batch."""
    data, trainer = task.config["data"], task.config["trainer"]
    ranks = processes(trainer) if task._trainer is None else task._trainer.world_size
    parts = ranks * trainer["accumulate_grad_batches"]
    return max(1, data["batch_tokens"] // (data["seq_len"] * parts))


def sizes(task: LanguageModelTask) -> dict[str, Any]:
    """Return parameter counts, tokens per step and budget, for the announcement and the summary."""
    config = task.config
    shipped = count_parameters(task.model)
    return {
        "parameters": {"shipped": shipped, "training_only": count_parameters(task) - shipped},
        "tokens_per_step": config["data"]["batch_tokens"],
        "budget": {key: config["trainer"][key] for key in ("max_steps", "max_time")},
    }
