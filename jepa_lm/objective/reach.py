"""Reach of losses: gradient norms by loss and module, on random tokens before training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.objective.auxiliary_loss import main_needs
from jepa_lm.objective.checks import check_length
from jepa_lm.objective.gradients import gradients, norm
from jepa_lm.objective.latent_prediction import LatentPrediction
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.token_prediction import TokenPrediction
from jepa_lm.utils.errors import UserError

PROBE_TOKENS = 128
"""Longest sequence used for the reach table, which does not depend on the length."""


PROBE_NOISE = 0.02


def reach_table(
    model: LanguageModel,
    objective: LatentPrediction | None,
    seq_len: int,
    frozen: Iterable[str],
    tokens: TokenPrediction | None = None,
) -> dict[str, dict[str, float]]:
    """Return gradient norms by loss and module, {loss: {module: norm}}, on random tokens.

    They are measured on a copy in which tensors that start at zero get small random values, because a
    zero output would block the gradient to everything behind it. Frozen parameters keep their values. A
    satisfied hinge has no gradient, so the reach of its input is measured instead.

    Args:
        frozen: parameter names as the task has them (with the prefix `model.`, `objective.` or `tokens.`).
    """
    model, objective, tokens = copy.deepcopy((model, objective, tokens))
    parts = {"model": model, "objective": objective, "tokens": tokens}
    for prefix, part in parts.items():
        if part is not None:
            _fill_zeros(part, f"{prefix}.", set(frozen))
    modules = _modules(parts)
    length = _fitting_length(objective, tokens, model, min(seq_len, PROBE_TOKENS), seq_len)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.vocab_size, (4, length + 1), generator=draw)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    needs = main_needs(model, [loss for loss in (objective, tokens) if loss is not None])
    logits, main = model(inputs, *needs)
    losses = {"ce": token_nll(logits, targets).mean()}
    step_context = StepContext.at_start()
    if tokens is not None:
        batch = {"inputs": inputs, "targets": targets}
        losses["tokens"] = tokens(model, batch, main, step_context)
    if objective is not None:
        latents = objective.compare(model, objective.stand_in(inputs), main, step_context)
        losses |= objective.losses_of(latents, step_context)
        read = {n: latents.at(r.tensor) for n, r in objective.regularizers.items()}  # type: ignore[arg-type]
    else:
        read = {}
    everything = [p for ps in modules.values() for p in ps]
    table = {}
    for loss, value in losses.items():
        found = gradients(value, everything)
        if loss in read and not norm(found):
            x = read[loss]
            found = gradients((x * torch.randn(x.shape, generator=draw)).mean(), everything)
        left = iter(found)
        by_module = {name: [next(left) for _ in ps] for name, ps in modules.items()}
        table[loss] = {name: norm(grads).item() for name, grads in by_module.items()}
    return table


def _fill_zeros(module: nn.Module, prefix: str, frozen: set[str]) -> None:
    """Give every trainable tensor that is all zeros small random values."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if prefix + name not in frozen and not parameter.any():
                parameter.copy_(PROBE_NOISE * torch.randn(parameter.shape, generator=draw))


def _modules(parts: Mapping[str, nn.Module | None]) -> Mapping[str, list[nn.Parameter]]:
    """Return the trainable parameters by module; each block is a module of its own."""
    found: dict[str, list[nn.Parameter]] = {}
    for part, module in parts.items():
        for name, parameter in () if module is None else module.named_parameters():
            names = name.split(".")
            key = ".".join(names[:3] if names[:2] == ["backbone", "blocks"] else names[:1])
            found.setdefault(f"{part}.{key}", []).append(parameter)
    trainable = {key: [p for p in ps if p.requires_grad] for key, ps in found.items()}
    return {key: ps for key, ps in trainable.items() if ps}


def _fitting_length(
    objective: LatentPrediction | None,
    tokens: TokenPrediction | None,
    model: LanguageModel,
    least: int,
    most: int,
) -> int:
    """Return the shortest length that the composition accepts, doubling from `least` up to `most`."""
    length = least
    while length < most:
        try:
            if objective is not None:
                check_length(objective, model, length)
            if tokens is not None:
                tokens.check(length)
        except UserError:
            length *= 2
        else:
            return length
    return most
