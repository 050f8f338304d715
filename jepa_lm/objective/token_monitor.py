"""Monitor of a token objective: its share of the gradient at the trunk, measured at intervals."""

from __future__ import annotations

from typing import Any

import torch

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.model.cross_entropy import mean_nll
from jepa_lm.objective.gradients import FirstSteps, trunk_gradients
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.token_prediction import TokenPrediction


class TokenMonitor:
    """Diagnostics of one run.

    Args:
        objective: the objective to measure; it is not changed.
    """

    def __init__(self, objective: TokenPrediction) -> None:
        self.objective = objective
        self.figures: dict[str, float] = {}
        """Figures of the latest measurement."""

    def due(self, step: int) -> bool:
        """Return whether to measure at this step; an objective of weight 0 is never measured."""
        return bool(self.objective.weight) and step % self.objective.diagnostics_every == 0

    def measure(
        self,
        model: LanguageModel,
        batch: Batch,
        step_context: StepContext,
        *,
        step: int,
        ce_weight: float,
        first_steps: FirstSteps | None = None,
    ) -> list[str]:
        """Measure on a micro-batch in a separate pass; return new warnings, of which there are none.

        The two gradients are compared with their current weights; in a phase without the objective, its
        gradient has its full weight.
        """
        objective = self.objective
        devices = [batch["inputs"].device] if batch["inputs"].is_cuda else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            logits, main = model(batch["inputs"], *objective.main_needs(model))
            ce = ce_weight * mean_nll(logits, batch["targets"], batch.get("weights"))
            loss, found = objective(model, batch, main, step_context)
            weight = objective.scale(step_context.clock) or objective.weight
            found |= trunk_gradients(
                model, ce, weight * loss, per_layer=False, first_steps=first_steps
            )
        values = torch.stack([value.detach().float() for value in found.values()])
        self.figures = dict(zip(found, values.tolist(), strict=True))
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in the form of `ObjectiveMonitor.state_dict`."""
        return {"figures": self.figures, "warnings": [], "low": {}, "raised": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.figures = state["figures"]

    def summary(self) -> dict[str, Any]:
        """Return the entries for summary.json."""
        return dict(self.figures)

    def in_words(self) -> list[str]:
        """Return sentences that explain the latest measurement."""
        if "trunk_gradient_share" not in self.figures:
            return []
        share, cosine = (self.figures[f"trunk_gradient_{k}"] for k in ("share", "cosine"))
        return [
            f"the token objective contributes {share:.1%} of the gradient at the trunk; its cosine with the "
            f"gradient of cross entropy is {cosine:+.2f}"
        ]
