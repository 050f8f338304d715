"""Monitor of an auxiliary loss: at intervals it holds the loss's gradient against that of cross entropy."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.model.cross_entropy import mean_nll
from jepa_lm.objective.auxiliary_loss import LOSS, AuxiliaryLoss
from jepa_lm.objective.gradients import FirstSteps, trunk_gradients
from jepa_lm.objective.step_context import StepContext
from jepa_lm.utils.precision import full_precision


class Monitor:
    """Diagnostics of an auxiliary loss in one run.

    Args:
        objective: the loss to measure; it is not changed. every: optimizer steps between measurements.
        per_layer: give the gradient's share of each block, too.
    """

    name: ClassVar[str]
    """Name of the loss in sentences."""

    def __init__(self, objective: AuxiliaryLoss, every: int, *, per_layer: bool = False) -> None:
        self.objective, self.every, self.per_layer = objective, every, per_layer
        self.figures: dict[str, float] = {}
        """Figures of the latest measurement."""
        self.warnings: list[str] = []
        self.switched_off = False
        """True if the latest measurement fell into a phase without the objective."""

    def due(self, step: int) -> bool:
        """Return whether to measure at this step."""
        return step % self.every == 0

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
        """Measure on a micro-batch in a separate pass; return new warnings.

        The two gradients are compared with their current weights; in a phase without the objective, its
        gradient has its full weight.
        """
        objective, clock, inputs = self.objective, step_context.clock, batch["inputs"]
        scale = objective.scale(clock)
        found: dict[str, Tensor] = {}
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []),
        ):
            logits, main = model(inputs, *objective.main_needs(model))
            ce = ce_weight * mean_nll(logits, batch["targets"], batch.get("weights"))
            components, latents = self._compute(model, batch, main, step_context)
            if weight := scale or objective.weight:
                loss = weight * objective.total(components, clock)
                found = trunk_gradients(
                    model, ce, loss, per_layer=self.per_layer, first_steps=first_steps
                )
        self.switched_off = scale == 0
        with torch.no_grad(), full_precision(inputs.device):
            rows = self._describe(model, latents, found)
        found |= {name: loss.detach() for name, loss in components.items() if name != LOSS}
        values = torch.stack([value.detach().float() for value in found.values()])
        self.figures = dict(zip(found, values.tolist(), strict=True))
        before = len(self.warnings)
        self._judge(step, step_context, model, rows)
        return self.warnings[before:]

    def _compute(
        self, model: LanguageModel, batch: Batch, main: Encoded, step_context: StepContext
    ) -> tuple[dict[str, Tensor], Any]:
        """Return the components of the loss, and what else `_describe` reads."""
        return self.objective.components(model, batch, main, step_context), None

    def _describe(
        self, model: LanguageModel, latents: Any, found: dict[str, Tensor]
    ) -> dict[str, int]:
        """Add figures to `found`; return what else `_judge` reads."""
        return {}

    def _judge(
        self, step: int, step_context: StepContext, model: LanguageModel, rows: dict[str, int]
    ) -> None:
        """Add new warnings of the figures."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in plain containers."""
        switched_off = {"switched_off": True} if self.switched_off else {}
        return {"figures": self.figures, "warnings": self.warnings, **switched_off}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.figures, self.warnings = state["figures"], state["warnings"]
        self.switched_off = bool(state.get("switched_off"))

    @classmethod
    def is_state(cls, state: Any) -> bool:
        """Return whether a value from a checkpoint has the form of `state_dict`."""
        if not isinstance(state, dict) or not {"figures", "warnings"} <= state.keys():
            return False
        figures, warnings = state["figures"], state["warnings"]
        return (
            isinstance(figures, dict)
            and isinstance(warnings, list)
            and all(type(value) in (int, float) for value in figures.values())
            and all(type(warning) is str for warning in warnings)
        )

    def summary(self) -> dict[str, Any]:
        """Return the entries for summary.json."""
        return dict(self.figures)

    def in_words(self) -> list[str]:
        """Return sentences that explain the latest measurement."""
        if "trunk_gradient_share" not in self.figures:
            return []
        share, cosine = (self.figures[f"trunk_gradient_{k}"] for k in ("share", "cosine"))
        would = "would contribute, at its full weight," if self.switched_off else "contributes"
        return [
            f"{self.name} {would} {share:.1%} of the gradient at the trunk; its cosine with the gradient of "
            f"cross entropy is {cosine:+.2f}"
        ]
