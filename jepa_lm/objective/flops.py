"""Cost of an objective: FLOPs of its own forward and backward passes, counted while they run."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.model.layers import CausalSelfAttention
from jepa_lm.objective.latent_prediction import LatentPrediction
from jepa_lm.objective.step_context import StepContext
from jepa_lm.schedules.clock import ProgressClock

ATTENTION = {torch.ops.aten.bmm, torch.ops.aten.baddbmm}
"""Batched products: those of attention count half because of causality, those of a scan in full."""
AnyModule = TypeVar("AnyModule", bound=nn.Module)
FEWEST_ROWS = 2
"""Regularizers over rows need at least two."""


def _shapes(module: AnyModule) -> AnyModule:
    """Return a copy on the meta device, without copying any weight."""
    parameters = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    buffers = {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    return copy.deepcopy(module, {**parameters, **buffers})


def objective_flops_per_token(
    model: LanguageModel, objective: LatentPrediction | None, seq_len: int, rows: int
) -> int:
    """Return the training FLOPs that an active objective adds per token of the main pass.

    Everything runs on PyTorch's meta device, so this takes about a second and no memory.

    Args:
        rows: of a micro-batch: a loss that compares rows with each other costs more, the more there are.
    """
    if objective is None or not objective.weight:
        return 0
    model, objective = _shapes(model), _shapes(objective)
    inputs = torch.zeros(max(rows, FEWEST_ROWS), seq_len, dtype=torch.long, device="meta")
    batch = {"inputs": inputs, "targets": inputs}
    step_context = StepContext(ProgressClock(max_steps=1, max_time=None))
    needs = objective.main_needs(model)

    attends = any(isinstance(m, CausalSelfAttention) for m in model.modules())

    def count(with_objective: bool) -> int:
        assert objective is not None
        with FlopCounterMode(display=False) as counter:
            logits, main = model(inputs, *needs)
            loss = token_nll(logits, inputs).mean()
            if with_objective:
                loss = loss + objective(model, batch, main, step_context)[0]
            loss.backward()
        by_operation = counter.get_flop_counts()["Global"]
        batched = sum(n for op, n in by_operation.items() if op in ATTENTION)
        return counter.get_total_flops() - (batched // 2 if attends else 0)

    return (count(True) - count(False)) // inputs.numel()
