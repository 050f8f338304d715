"""Gradients of an objective at the trunk, compared with those of cross entropy.

The share shows whether an objective trains the trunk at all, and how strongly compared with cross
entropy; the table in `reach.py` shows the same before training, for every loss and module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from jepa_lm.model import LanguageModel

FirstSteps = Callable[[Mapping[Tensor, Tensor]], list[Tensor]]
"""Returns what an optimizer's first step would add to parameters, given their gradients."""


def gradients(loss: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of a loss, zeros where there is none; keep the graph and leave `.grad` alone."""
    parameters = list(parameters)
    if not loss.requires_grad or not parameters:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm over all values of all tensors."""
    norms = [t.float().norm() for t in tensors]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def compare_gradients(ce: list[Tensor], aux: list[Tensor]) -> dict[str, Tensor]:
    """Return the auxiliary share of the sum of both norms, and the cosine of both gradients."""
    ce_norm, aux_norm = norm(ce), norm(aux)
    return {
        "gradient_share": aux_norm / (ce_norm + aux_norm).clamp(min=1e-30),
        "gradient_cosine": cosine(ce, aux),
    }


def cosine(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return the cosine of all values of some tensors with those of others."""
    dot = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    return dot / (norm(one) * norm(other)).clamp(min=1e-30)


def trunk_gradients(
    model: LanguageModel,
    ce: Tensor,
    aux: Tensor,
    *,
    per_layer: bool,
    first_steps: FirstSteps | None = None,
) -> dict[str, Tensor]:
    """Compare the gradients of cross entropy and the auxiliary loss at the trunk.

    Args:
        ce, aux: the losses as weighted in the total. per_layer: also compare for every block.
        first_steps: of the run's optimizer. Muon's step has a fixed length, so an auxiliary loss takes from
            the cross entropy's own step what it adds.

    Returns:
        Gradient share and cosine at the trunk, and with `first_steps` the cosine of the step for both losses
        with that for cross entropy alone; empty if the trunk is frozen.
    """
    trunk = [p for p in model.backbone.parameters() if p.requires_grad]
    if not trunk:  # frozen on purpose
        return {}
    by_ce, by_aux = gradients(ce, trunk), gradients(aux, trunk)
    found = {f"trunk_{k}": v for k, v in compare_gradients(by_ce, by_aux).items()}
    if first_steps is not None:
        both = [a + b for a, b in zip(by_ce, by_aux, strict=True)]
        steps = [first_steps(dict(zip(trunk, g, strict=True))) for g in (both, by_ce)]
        found["trunk_step_cosine"] = cosine(*steps)
    if per_layer:
        index = {id(p): i for i, p in enumerate(trunk)}
        for layer, block in enumerate(model.backbone.blocks):
            mine = [index[id(p)] for p in block.parameters() if p.requires_grad]
            if mine:
                figures = compare_gradients([by_ce[i] for i in mine], [by_aux[i] for i in mine])
                found |= {f"block_{layer}_{k}": v for k, v in figures.items()}
    return found
