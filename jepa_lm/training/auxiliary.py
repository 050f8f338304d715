"""Auxiliary losses of a training step by the keys of their settings, `jepa` and `tokens`; noise, dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from jepa_lm.data.related import RELATED
from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.model.dropout import draw_dropout
from jepa_lm.objective import StepContext
from jepa_lm.objective.auxiliary_loss import AuxiliaryLoss
from jepa_lm.objective.views import RandomReplacement
from jepa_lm.schedules.clock import ProgressClock

Auxiliaries: TypeAlias = Mapping[str, AuxiliaryLoss]
READ = "read"
"""Field of a batch with what the main pass reads in place of `inputs` [B, T]; passes of their own do not."""

KEPT = "kept"
"""Field of a batch with what dropout keeps of the main pass, [L, 2, B, T, D]."""


def active_of(objectives: Auxiliaries, clock: ProgressClock) -> frozenset[str]:
    """Return the keys of the objectives that a step trains at this time."""
    return frozenset(key for key, objective in objectives.items() if objective.active(clock))


def input_noise(config: Mapping[str, Any]) -> RandomReplacement | None:
    """Return what replaces a share `data.noise` of the main pass's input tokens in training, or None."""
    data = config["data"]
    if not data.get("noise"):
        return None
    vocab_size = config["model"]["vocab_size"]
    return RandomReplacement(rate=data["noise"], vocab_size=vocab_size, seed=data["seed"])


def noised(noise: RandomReplacement | None, batch: Batch, step_context: StepContext) -> Batch:
    """Return the batch with what the main pass reads, if that is not the text as it is."""
    if noise is None:
        return batch
    return {**batch, READ: noise(batch["inputs"], step_context, "noise").inputs}


def thinned(model: LanguageModel, seed: int, batch: Batch, step_context: StepContext) -> Batch:
    """Return the batch with what dropout keeps of the main pass; each rank draws its own."""
    if not model.dropout:
        return batch
    drawn = replace(step_context, per_rank=True).generator(seed, "dropout").initial_seed()
    rows, positions = batch["inputs"].shape
    shape, device = (rows, positions, model.dim), batch["inputs"].device
    return {**batch, KEPT: draw_dropout(model.dropout, model.layers, shape, drawn, device)}


def drawn(
    objectives: Auxiliaries, active: frozenset[str], batch: Batch, step_context: StepContext
) -> StepContext | None:
    """Return the context with all that the active objectives draw for a batch; None if none is active."""
    if not active:
        return None
    step_context = replace(step_context, related=batch.get(RELATED))
    for key, objective in objectives.items():
        if key in active:
            step_context = objective.draw(batch["inputs"], step_context)
    return replace(step_context, without=frozenset(objectives) - active, related=None)


def only_auxiliary(objectives: Auxiliaries, model: LanguageModel) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters that get no gradient from cross entropy, by their objective."""
    found = {key: list(objective.parameters()) for key, objective in objectives.items()}
    if model.injector is not None:
        found.setdefault("jepa", []).extend(model.injector.behind_stop_gradient())
    return {key: [p for p in mine if p.requires_grad] for key, mine in found.items()}
