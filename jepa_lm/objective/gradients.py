"""Gradients of an objective at the trunk, compared with those of cross entropy.

The share shows whether an objective trains the trunk at all, and how strongly compared with cross
entropy; the table in `reach.py` shows the same before training, for every loss and module.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from jepa_lm.model import LanguageModel


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
    dot = torch.stack([(a * b).sum() for a, b in zip(ce, aux, strict=True)]).sum()
    return {
        "gradient_share": aux_norm / (ce_norm + aux_norm).clamp(min=1e-30),
        "gradient_cosine": dot / (ce_norm * aux_norm).clamp(min=1e-30),
    }


def trunk_gradients(
    model: LanguageModel, ce: Tensor, aux: Tensor, *, per_layer: bool
) -> dict[str, Tensor]:
    """Compare the gradients of cross entropy and the auxiliary loss at the trunk.

    Args:
        ce, aux: the losses as weighted in the total. per_layer: also compare for every block.

    Returns:
        Gradient share and cosine at the trunk; empty if the trunk is frozen.
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
