"""Where the gradient of an objective goes: its share at the trunk, and a table of reach.

The share tells whether an objective trains the trunk at all, and how much beside cross entropy; the
table tells the same before training, for every loss and module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from jepa_lm.errors import UserError
from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.objective.composition import check_length
from jepa_lm.objective.latent_prediction import LatentPrediction
from jepa_lm.objective.moment import Moment
from jepa_lm.optim.clock import ProgressClock

PROBE_TOKENS = 128
"""Longest sequence of the reach table; what reaches what does not depend on it."""
PROBE_NOISE = 0.02


def gradients(loss: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Gradients of a loss, zeros where it does not reach; the graph is kept and `.grad` untouched."""
    parameters = list(parameters)
    if not loss.requires_grad or not parameters:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """L2 norm of all values together."""
    norms = [t.float().norm() for t in tensors]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def compare_gradients(ce: list[Tensor], aux: list[Tensor]) -> dict[str, Tensor]:
    """Share of the auxiliary gradient in the sum of norms, and its cosine with the other."""
    ce_norm, aux_norm = norm(ce), norm(aux)
    dot = torch.stack([(a * b).sum() for a, b in zip(ce, aux, strict=True)]).sum()
    return {
        "gradient_share": aux_norm / (ce_norm + aux_norm).clamp(min=1e-30),
        "gradient_cosine": dot / (ce_norm * aux_norm).clamp(min=1e-30),
    }


def trunk_gradients(
    model: LanguageModel, ce: Tensor, aux: Tensor, *, per_layer: bool
) -> dict[str, Tensor]:
    """The auxiliary loss beside cross entropy, both as weighted in the total, at the trunk.

    Args:
        per_layer: also for every block.
    """
    trunk = [p for p in model.backbone.parameters() if p.requires_grad]
    if not trunk:  # frozen on purpose
        return {}
    by_ce, by_aux = gradients(ce, trunk), gradients(aux, trunk)
    found = {f"trunk_{k}": v for k, v in compare_gradients(by_ce, by_aux).items()}
    if per_layer:
        index = {id(p): i for i, p in enumerate(trunk)}
        for layer, block in enumerate(model.backbone.blocks):
            mine = [index[id(p)] for p in block.parameters() if p.requires_grad]
            if mine:
                figures = compare_gradients([by_ce[i] for i in mine], [by_aux[i] for i in mine])
                found |= {f"block_{layer}_{k}": v for k, v in figures.items()}
    return found


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
        moment = Moment(ProgressClock(max_steps=1, max_time=None))
        latents = objective.compare(model, batch, main, moment)
        losses |= objective.components(latents, moment)
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
