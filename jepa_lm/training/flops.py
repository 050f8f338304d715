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
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.objective import LatentPrediction, TokenPrediction
from jepa_lm.objective.passes import main_needs
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.teacher import OpenTeacher
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.compiling import on_cpu
from jepa_lm.utils.errors import warn
from jepa_lm.utils.quoting import one_line

AnyModule = TypeVar("AnyModule", bound=nn.Module)
MOMENTS = 1000
"""Of a run, at which `flops_of` looks for active losses."""
FEWEST_ROWS = 2
"""Regularizers over rows need at least two."""
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Of `scaled_dot_product_attention`, in their order."""
_counted: dict[str, dict[str, int]] = {}
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
    objectives: Mapping[str, LatentPrediction | TokenPrediction],
    rows: int,
    seq_len: int,
) -> int:
    """Return the FLOPs of one forward and backward pass over a micro-batch.

    Args:
        model, objectives: on the meta device. objectives: by key; none for cross entropy alone.
        rows: of the micro-batch; a loss that compares rows with each other costs more, the more there are.
    """
    inputs = torch.zeros(rows, seq_len, dtype=torch.long, device="meta")
    needs = main_needs(model, objectives)
    with FlopCounterMode(display=False) as products, CountAttention() as attention:
        logits, main = model(inputs, *needs)
        loss = token_nll(logits, inputs).mean()
        step_context = StepContext(ProgressClock(max_steps=1, max_time=None))
        for objective in objectives.values():
            loss = loss + objective(model, objective.stand_in(inputs), main, step_context)[0]
        loss.backward()
    return products.get_total_flops() + attention.total[0]


def model_flops_per_token(model: LanguageModel, seq_len: int) -> int:
    """Return the training FLOPs of cross entropy per token."""
    return count_flops(on_meta(model), {}, 1, seq_len) // seq_len


def flops_per_token(task: LanguageModelTask) -> dict[str, int]:
    """Return training FLOPs per token: of cross entropy, and what active objectives add.

    Empty, with a warning, if a part of the user's own cannot run on the meta device.
    """
    config, seq_len = task.config, task.config["data"]["seq_len"]
    rows = max(micro_batch_rows(task), FEWEST_ROWS)
    losses = [config["jepa"], config.get("tokens")]
    decides = json.dumps([config["model"], losses, task.frozen, seq_len, rows])
    if decides not in _counted:  # takes a second, and jobs of a sweep often share it
        try:
            _counted[decides] = _counted_on_meta(task, rows, seq_len)
        except (
            Exception
        ) as error:  # code of the user's own; the run's other figures must not be lost
            warn(f"FLOPs are not counted: {type(error).__name__}: {one_line(error)}")
            return {}
    return _counted[decides]


def _counted_on_meta(task: LanguageModelTask, rows: int, seq_len: int) -> dict[str, int]:
    model, added = on_meta(task.model), 0
    alone = count_flops(model, {}, rows, seq_len)
    if objectives := weighted(task):
        added = count_flops(model, objectives, rows, seq_len) - alone
    tokens = rows * seq_len
    return {"model": alone // tokens, "objective": added // tokens}


def flops_of(config: Mapping[str, Any], open_teacher: OpenTeacher) -> float:
    """Return the training FLOPs per token of a run with this resolved config, averaged over its steps.

    A loss counts in the steps in which it is active.
    """
    task = outline(config, open_teacher)
    clock, budget = task.clock, config["trainer"]
    rows, seq_len = max(micro_batch_rows(task), FEWEST_ROWS), config["data"]["seq_len"]
    model, objectives = on_meta(task.model), weighted(task)
    spent: dict[tuple[str, ...], int] = {}
    total = 0
    steps = range(0, budget["max_steps"], max(1, budget["max_steps"] // MOMENTS))
    for clock.step in steps:
        active = tuple(key for key, o in task.auxiliaries.items() if o.active(clock))
        if active not in spent:
            spent[active] = count_flops(model, {k: objectives[k] for k in active}, rows, seq_len)
        total += spent[active]
    return total / len(steps) / (rows * seq_len)


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


def weighted(task: LanguageModelTask) -> dict[str, LatentPrediction | TokenPrediction]:
    """Return copies on the meta device of the objectives that have a weight, by key."""
    return {key: on_meta(o) for key, o in task.auxiliaries.items() if o.weight}


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
    parts = _ranks(task) * trainer["accumulate_grad_batches"]
    return max(1, data["batch_tokens"] // (data["seq_len"] * parts))


def _ranks(task: LanguageModelTask) -> int:
    """Return the ranks of a run; of one that has not started, those that its config asks for."""
    if task._trainer is not None:
        return task._trainer.world_size
    trainer = task.config["trainer"]
    devices = trainer["devices"]
    if isinstance(devices, list):
        devices = len(devices)
    elif devices in ("auto", -1, "-1"):
        devices = 1 if on_cpu(trainer) else max(1, torch.cuda.device_count())
    return int(devices) * trainer["num_nodes"]


def sizes(task: LanguageModelTask) -> dict[str, Any]:
    """Return parameter counts, tokens per step and budget, for the announcement and the summary."""
    config = task.config
    shipped = count_parameters(task.model)
    return {
        "parameters": {"shipped": shipped, "training_only": count_parameters(task) - shipped},
        "tokens_per_step": config["data"]["batch_tokens"],
        "budget": {key: config["trainer"][key] for key in ("max_steps", "max_time")},
    }
