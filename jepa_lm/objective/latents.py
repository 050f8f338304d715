"""The tensors that an objective compares in a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa_lm.model import LanguageModel
from jepa_lm.objective.alignment import Pair
from jepa_lm.objective.distances import Comparison, Sum
from jepa_lm.objective.step_context import StepContext

PARTS = "prediction_"
"""Parts of a sum of distances are logged under their names after this."""


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
        if place == "both":
            return torch.cat((self.context, self.at("target")), dim=1)
        if place == "normed_prediction":
            parts = [prediction for prediction, _ in self.normed]
        else:
            parts = [p.target if place == "target" else p.prediction for p in self.pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _comparison(self, pair: Pair, step_context: StepContext) -> Comparison:
        """Return what the distance of a pair may read beside it."""
        return Comparison(
            model=self.model,
            target_model=self.target_model,
            context=pair.context,
            step_context=step_context,
            rows=pair.rows,
            answers=pair.answers,
            tokens=pair.tokens,
            level=pair.level,
        )

    def distances(self, distance: nn.Module, step_context: StepContext) -> dict[str, Tensor]:
        """Return the `prediction` loss, and the parts of a sum of distances, detached."""
        losses: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {}
        for pair, (prediction, target) in zip(self.pairs, self.normed, strict=True):
            given = (prediction, target, self._comparison(pair, step_context))
            if not isinstance(distance, Sum):
                losses.append(pair.weight * distance(*given))
                continue
            own = distance.parts(*given)
            if not own:  # every distance is for another level
                continue
            losses.append(pair.weight * distance.of(own))
            for name, part in own.items():
                parts.setdefault(PARTS + name, []).append(pair.weight * part.detach())
        summed = {name: torch.stack(shares).sum() for name, shares in parts.items()}
        return {"prediction": torch.stack(losses).sum(), **summed}
