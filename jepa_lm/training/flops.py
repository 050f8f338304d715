"""Parameters and training FLOPs of a run."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from jepa_lm.model.layers import CausalSelfAttention
from jepa_lm.model.mamba2 import Mamba2Mixer
from jepa_lm.model.roles import parameter_roles
from jepa_lm.objective.flops import objective_flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.training.startup import on_cpu

_counted: dict[str, int] = {}
"""FLOPs of objectives counted in this process, by the settings that determine them."""


def count_parameters(module: nn.Module) -> int:
    """Return the number of values in all parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


def model_flops_per_token(model: nn.Module, seq_len: int) -> int:
    """Return training FLOPs per token: forward and backward through matrices, head, attention and scans."""
    roles = parameter_roles(model)
    parameters = dict(model.named_parameters())
    matrices = sum(parameters[n].numel() for n, r in roles.items() if r in ("matrix", "head"))
    if not any(role == "head" for role in roles.values()):
        matrices += parameters["embedding.table.weight"].numel()  # the tied head multiplies by it
    if (injector := getattr(model, "injector", None)) is not None:
        once_a_chunk = sum(p.numel() for p in injector.parameters() if p.ndim == 2)
        matrices -= once_a_chunk - once_a_chunk // injector.chunk
    attention = sum(
        2 * seq_len * m.heads * m.head_dim
        for m in model.modules()
        if isinstance(m, CausalSelfAttention)
    )
    scans = sum(
        m.scan_flops_per_token(seq_len) for m in model.modules() if isinstance(m, Mamba2Mixer)
    )
    return 3 * (2 * matrices + attention + scans)


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


def flops_per_token(task: LanguageModelTask) -> dict[str, int]:
    """Return training FLOPs per token of the model and of the objective."""
    config, seq_len = task.config, task.config["data"]["seq_len"]
    rows = micro_batch_rows(task)
    decides = json.dumps([config["model"], config["jepa"], seq_len, rows], sort_keys=True)
    if decides not in _counted:  # takes a second, and jobs of a sweep often share it
        _counted[decides] = objective_flops_per_token(task.model, task.objective, seq_len, rows)
    return {"model": model_flops_per_token(task.model, seq_len), "objective": _counted[decides]}


def sizes(task: LanguageModelTask) -> dict[str, Any]:
    """Return parameter counts, tokens per step and budget, for the announcement and the summary."""
    config = task.config
    shipped = count_parameters(task.model)
    return {
        "parameters": {"shipped": shipped, "training_only": count_parameters(task) - shipped},
        "tokens_per_step": config["data"]["batch_tokens"],
        "budget": {key: config["trainer"][key] for key in ("max_steps", "max_time")},
    }
