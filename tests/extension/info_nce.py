"""InfoNCE: a prediction must find its own target among those of all rows.

Source: van den Oord et al., "Representation learning with contrastive predictive coding" (2018).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.objective.step_context import StepContext


class InfoNCE(nn.Module):
    """Cross entropy of the cosines of a prediction with all targets, over a temperature."""

    fragile_at_zero = True

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, prediction: Tensor, target: Tensor, step_context: StepContext) -> Tensor:
        """[..., D] twice -> scalar; a rank's own rows are the negatives."""
        p, t = (F.normalize(x.flatten(0, -2), dim=-1) for x in (prediction, target))  # [N, D]
        return F.cross_entropy(p @ t.T / self.temperature, torch.arange(len(p), device=p.device))
