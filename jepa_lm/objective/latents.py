"""The tensors that an objective compares in a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_lm.model import LanguageModel
from jepa_lm.objective.alignment import Pair
from jepa_lm.objective.distances import Comparison
from jepa_lm.objective.step_context import StepContext


@dataclass
class Latents:
    """Latents of a micro-batch, all float32, and the models behind them."""

    pairs: list[Pair]
    """Pairs before normalisation; targets have gradients if their source has."""
    normed: list[tuple[Tensor, Tensor]]
    """Prediction and target [B, N', D] of each pair as passed to the distance."""
    context: Tensor
    """All context latents [B, N, D]."""
    model: LanguageModel
    """The model that is trained."""
    target_model: LanguageModel
    """The model that the targets come from."""

    def at(self, place: str) -> Tensor:
        """Return the tensor [B, N, D] that a regularizer with `tensor=place` gets."""
        if place == "context":
            return self.context
        if place == "normed_prediction":
            parts = [prediction for prediction, _ in self.normed]
        else:
            parts = [p.target if place == "target" else p.prediction for p in self.pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def comparison(self, pair: Pair, step_context: StepContext) -> Comparison:
        """Return what the distance of a pair may read beside it."""
        return Comparison(
            model=self.model,
            target_model=self.target_model,
            context=pair.context,
            step_context=step_context,
            rows=pair.rows,
            answers=pair.answers,
        )
