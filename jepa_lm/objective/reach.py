"""Which loss reaches which module: gradient norms on random tokens, before training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.objective.checks import check_length
from jepa_lm.objective.gradients import gradients, norm
from jepa_lm.objective.latent_prediction import LatentPrediction
from jepa_lm.objective.step_context import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.utils.errors import UserError

PROBE_TOKENS = 128
"""Longest sequence of the reach table; what reaches what does not depend on it."""


PROBE_NOISE = 0.02


def reach_table(
    model: LanguageModel, objective: LatentPrediction | None, seq_len: int, frozen: Iterable[str]
) -> dict[str, dict[str, float]]:
    """Gradient norms by loss and module, {loss: {module: norm}}, on random tokens.

    Measured on a copy in which tensors that start at zero get small random values: a zero output
    would hide everything behind it. Frozen parameters stay as they are. A hinge that is met has no
    gradient at the moment; for it, what its input reaches is measured.

    Args:
        frozen: names as the task has them (`model.` and `objective.` in front).
    """
    model, objective = copy.deepcopy((model, objective))
    _fill_zeros(model, "model.", set(frozen))
    if objective is not None:
        _fill_zeros(objective, "objective.", set(frozen))
    modules = _modules(model, objective)
    length = min(seq_len, PROBE_TOKENS)
    if objective is not None and length < seq_len:
        length = _fitting_length(objective, model, length, seq_len)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, (4, length + 1), generator=draw)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    taps, keep = ((), None) if objective is None else objective.main_needs(model)
    logits, main = model(batch["inputs"], taps, keep)
    losses = {"ce": token_nll(logits, batch["targets"]).mean()}
    if objective is not None:
        step_context = StepContext(ProgressClock(max_steps=1, max_time=None))
        latents = objective.compare(model, batch, main, step_context)
        losses |= objective.components(latents, step_context)
        inputs = {n: latents.at(r.tensor) for n, r in objective.regularizers.items()}  # type: ignore[arg-type]
    else:
        inputs = {}
    everything = [p for ps in modules.values() for p in ps]
    table = {}
    for loss, value in losses.items():
        found = gradients(value, everything)
        if loss in inputs and not norm(found):
            x = inputs[loss]
            found = gradients((x * torch.randn(x.shape, generator=draw)).mean(), everything)
        left = iter(found)
        by_module = {name: [next(left) for _ in ps] for name, ps in modules.items()}
        table[loss] = {name: norm(grads).item() for name, grads in by_module.items()}
    return table


def _fill_zeros(module: nn.Module, prefix: str, frozen: set[str]) -> None:
    """Small random values for every trainable tensor that is zero throughout."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if prefix + name not in frozen and not parameter.any():
                parameter.copy_(PROBE_NOISE * torch.randn(parameter.shape, generator=draw))


def _modules(
    model: LanguageModel, objective: LatentPrediction | None
) -> Mapping[str, list[nn.Parameter]]:
    """Trainable parameters by module, blocks one by one."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        key = ".".join(parts[:3] if parts[:2] == ["backbone", "blocks"] else parts[:1])
        found.setdefault(f"model.{key}", []).append(parameter)
    for name, parameter in () if objective is None else objective.named_parameters():
        found.setdefault(f"objective.{name.split('.')[0]}", []).append(parameter)
    trainable = {key: [p for p in ps if p.requires_grad] for key, ps in found.items()}
    return {key: ps for key, ps in trainable.items() if ps}


def _fitting_length(
    objective: LatentPrediction, model: LanguageModel, least: int, most: int
) -> int:
    """The shortest sequence from `least` on, by doubling, that the composition accepts."""
    length = least
    while length < most:
        try:
            check_length(objective, model, length)
        except UserError:
            length *= 2
        else:
            return length
    return most
