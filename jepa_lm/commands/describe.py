"""Describes a run as plain values (sizes, FLOPs, groups, phases) without training it."""

from __future__ import annotations

from typing import Any

from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.prediction import predict
from jepa_lm.artifact.size import CAP_BYTES, code_bytes
from jepa_lm.objective.reach import reach_table
from jepa_lm.training.estimate import estimate
from jepa_lm.training.flops import flops_per_token, sizes
from jepa_lm.training.module import LanguageModelTask


def artifact(task: LanguageModelTask) -> dict[str, Any]:
    """Return the predicted size of the exported file for each codec, and the headroom under the cap."""
    predicted = predict(task.model, task.formats, list(COMPRESSORS))
    code = code_bytes()
    total = predicted["bytes"] + code
    account = {"code_bytes": code, "total": total, "cap": CAP_BYTES, "headroom": CAP_BYTES - total}
    return {**predicted, **account}


def describe(task: LanguageModelTask) -> dict[str, Any]:
    """Return sizes, FLOPs, artifact size, optimizer groups, frozen parameters, schedules, gradient reach.

    With `describe_for`, also what a step would take on that GPU.
    """
    card = task.config["describe_for"]
    seq_len = task.config["data"]["seq_len"]
    names = {id(p): n for n, p in task.named_parameters()}
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
        **({} if card is None else {"estimate": estimate(task, card)}),
        "artifact": artifact(task),
        "optimizer": {"groups": groups, "frozen": frozen},
        "schedules": task.phases(),
        "gradient_reach": reach_table(task.model, task.objective, seq_len, frozen, task.tokens),
    }
