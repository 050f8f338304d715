"""What would be trained, as plain values: sizes, groups, phases. Nothing is trained.

FLOPs of the model follow the usual count: 2 per weight of a matrix and token forward, three times
that with the backward pass, plus attention scores and their use, 4 T D forward per layer and token,
halved for the causal mask, or the products of Mamba-2's scan as its chunks run them. Those of the
objective are counted as its operations run (PyTorch's counter), with the same halving.
"""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.prediction import predict
from jepa_lm.artifact.size import CAP_BYTES, code_bytes
from jepa_lm.lit import LanguageModelTask
from jepa_lm.model.layers import CausalSelfAttention
from jepa_lm.model.mamba2 import Mamba2Mixer
from jepa_lm.objective.flops import objective_flops_per_token
from jepa_lm.objective.gradients import reach_table
from jepa_lm.optim.routing import parameter_roles

_counted: dict[str, int] = {}
"""FLOPs of objectives in this process, by what decides them."""


def count_parameters(module: nn.Module) -> int:
    """Values in all parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def model_flops_per_token(model: nn.Module, seq_len: int) -> int:
    """Training FLOPs of a token: forward and backward through matrices, head and attention."""
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


def flops_per_token(task: LanguageModelTask) -> dict[str, int]:
    """Training FLOPs of a token, by what they are for."""
    config, seq_len = task.config, task.config["data"]["seq_len"]
    decides = json.dumps([config["model"], config["jepa"], seq_len], sort_keys=True)
    if decides not in _counted:  # it takes a second, and jobs of a sweep have much in common
        _counted[decides] = objective_flops_per_token(task.model, task.objective, seq_len)
    return {"model": model_flops_per_token(task.model, seq_len), "objective": _counted[decides]}


def sizes(task: LanguageModelTask) -> dict[str, Any]:
    """What a run announces at its start, and what its summary keeps."""
    config = task.config
    shipped = count_parameters(task.model)
    return {
        "parameters": {"shipped": shipped, "training_only": count_parameters(task) - shipped},
        "tokens_per_step": config["data"]["batch_tokens"],
        "budget": {key: config["trainer"][key] for key in ("max_steps", "max_time")},
    }


def artifact(task: LanguageModelTask) -> dict[str, Any]:
    """What the exported file is expected to weigh, by each codec, and what is left of the cap."""
    predicted = predict(task.model, task.formats, list(COMPRESSORS))
    code = code_bytes()
    total = predicted["bytes"] + code
    account = {"code_bytes": code, "total": total, "cap": CAP_BYTES, "headroom": CAP_BYTES - total}
    return {**predicted, **account}


def describe(task: LanguageModelTask) -> dict[str, Any]:
    """Sizes, compute, artifact, optimizer groups, frozen parameters, schedules, gradient reach of a run."""
    seq_len = task.config["data"]["seq_len"]
    names = {id(p): n for n, p in task.named_parameters()}
    assert task.clock is not None
    optimizer, _ = task.recipe.configure(task, task.clock)
    groups = {
        group["name"]: {
            "algorithm": group["algorithm"],
            "lr": group["initial_lr"],
            "tensors": len(group["params"]),
            "values": sum(p.numel() for p in group["params"]),
            "parameters": [names[id(p)] for p in group["params"]],
        }
        for group in optimizer.param_groups
    }
    frozen = task.frozen
    return {
        **sizes(task),
        "flops_per_token": flops_per_token(task),
        "artifact": artifact(task),
        "optimizer": {"groups": groups, "frozen": frozen},
        "schedules": task.recipe.phases()
        | ({} if task.objective is None else task.objective.phases()),
        "gradient_reach": reach_table(task.model, task.objective, seq_len, frozen),
    }
