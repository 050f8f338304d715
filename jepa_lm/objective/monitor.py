"""Measures an objective now and then during a run, warns once, and says in words what it found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.objective.diagnostics import Collapse, CollapseAlarm, prediction_quality, spread
from jepa_lm.objective.gradients import trunk_gradients
from jepa_lm.objective.latent_prediction import LatentPrediction, Latents
from jepa_lm.objective.step_context import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.utils.precision import full_precision


class ObjectiveMonitor:
    """Diagnostics of one run.

    Args:
        objective: what is watched; it is not changed.
    """

    def __init__(self, objective: LatentPrediction) -> None:
        self.objective = objective
        # Without a predictor, what is called context is the prediction itself.
        tensors = ("target",) if objective.predictor is None else ("context", "target")
        self.alarm = CollapseAlarm(objective.diagnostics, objective.weakness(), tensors)
        self.figures: dict[str, float] = {}
        """Of the newest measurement."""
        self.warnings: list[str] = []
        self.switched_off = False
        """Whether the newest measurement fell into a phase without the objective."""

    def due(self, step: int) -> bool:
        """Whether to measure at this step."""
        return step % self.objective.diagnostics.every == 0

    def measure(
        self,
        model: LanguageModel,
        batch: Batch,
        step_context: StepContext,
        *,
        step: int,
        ce_weight: float,
    ) -> list[str]:
        """Measure on a micro-batch, in a pass of its own; returns new warnings.

        The two gradients are compared as weighted now, but the objective's by its full weight in a
        phase that has it switched off.
        """
        objective = self.objective
        devices = [batch["inputs"].device] if batch["inputs"].is_cuda else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            taps, keep = objective.main_needs(model)
            logits, main = model(batch["inputs"], taps, keep)
            ce = (
                ce_weight
                * objective.ce_scale(step_context.clock)
                * token_nll(logits, batch["targets"]).mean()
            )
            latents = objective.compare(model, batch, main, step_context)
            components = objective.components(latents, step_context, all_of_them=True)
            aux = objective.total(components, step_context.clock)
            weight = objective.scale(step_context.clock) or objective.weight
            found: dict[str, Tensor] = {}
            if weight:
                found = trunk_gradients(
                    model, ce, weight * aux, per_layer=objective.diagnostics.per_layer
                )
        self.switched_off = objective.scale(step_context.clock) == 0
        with torch.no_grad(), full_precision(batch["inputs"].device):
            rows = self._latents(latents, found)
            apart = objective.target.distance(model, objective.projector)
            if apart is not None:
                found["ema_distance"] = apart
            found |= {name: loss.detach() for name, loss in components.items()}
        names, values = list(found), torch.stack([v.detach().float() for v in found.values()])
        self.figures = dict(zip(names, values.tolist(), strict=True))
        return self._judge(step, rows, model.injector is not None)

    def _latents(self, latents: Latents, found: dict[str, Tensor]) -> int:
        """Add the figures of the latents; returns how many rows the smallest sample had."""
        sample = self.objective.diagnostics.sample
        prediction = torch.cat([p.flatten(0, -2) for p, _ in latents.normed])
        target = torch.cat([t.flatten(0, -2) for _, t in latents.normed])
        context = None
        if self.objective.predictor is not None:
            context = torch.cat([p.context.flatten(0, -2) for p in latents.pairs])
            if self.objective.normalisation is not None:
                context = self.objective.normalisation(context)
            context = sample(context)
        found |= prediction_quality(sample(prediction), sample(target), context)
        rows = {
            "context": sample(latents.context),
            "target": sample(latents.at("target")),
            "prediction": sample(latents.at("prediction")),
        }
        for tensor, x in rows.items():
            found |= {f"{tensor}_{figure}": value for figure, value in spread(x).items()}
        found["effective_rank"] = found["target_effective_rank"]
        return min(len(x) for x in rows.values())

    def _judge(self, step: int, rows: int, injects: bool) -> list[str]:
        before = len(self.warnings)
        collapse = self.alarm.read(step, self.figures, rows)
        if collapse is not None:
            self.warnings.append(str(collapse))
        untouched = (
            "the objective does not reach the trunk: its gradient there is exactly zero; "
            + (
                "only its injected features can change the score"
                if injects
                else "it cannot be why a score changes"
            )
        )
        if self.figures.get("trunk_gradient_share") == 0.0 and untouched not in self.warnings:
            self.warnings.append(untouched)
        return self.warnings[before:]

    def interval(
        self, total: float, scale: float, components: dict[str, float], clock: ProgressClock
    ) -> dict[str, float]:
        """What is logged on an interval, by metric: losses and their shares of the total.

        Args:
            total: the whole loss. components: `loss` and the objective's parts, of the newest step
                that had the objective; empty when none had it. scale: the weight it had there.
        """
        weights = self.objective.weights(clock)
        figures = {"weight": self.objective.scale(clock), **components}
        for name, value in components.items():
            key = "share" if name == "loss" else f"{name}_share"
            figures[key] = scale * weights.get(name, 1.0) * value / total if total else 0.0
        return {f"jepa/{name}": value for name, value in figures.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, in plain containers."""
        raised = self.alarm.raised
        return {
            "figures": self.figures,
            "warnings": self.warnings,
            "low": self.alarm.low,
            "raised": None if raised is None else raised._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another run stopped."""
        self.figures, self.warnings = state["figures"], state["warnings"]
        self.alarm.low = state["low"]
        self.alarm.raised = None if state["raised"] is None else Collapse(**state["raised"])

    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        raised = self.alarm.raised
        return {
            **self.figures,
            "collapse": None if raised is None else raised._asdict(),
            "warnings": self.warnings,
        }

    def in_words(self) -> list[str]:
        """What the newest measurement says, for people."""
        if not self.figures:
            return []
        f = self.figures
        verdict = "better" if f["r2"] > 0 else "no better"
        lines = [
            f"predictions point {f['cosine']:.2f} along their targets (1 is perfect; always answering "
            f"the mean target: {f['cosine_of_mean']:.2f}), and explain {max(0.0, f['r2']):.0%} of how "
            f"targets differ: {verdict} than the mean"
        ]
        if "r2_of_copy" in f:
            lines.append(f"copying the context would explain {max(0.0, f['r2_of_copy']):.0%}")
        lines.append(
            f"targets fill about {f['effective_rank']:.0f} directions, median spread "
            f"{f['target_std_median']:.2f} a dimension: "
            + ("collapsed" if self.alarm.raised else "no sign of collapse")
        )
        if "trunk_gradient_share" in f:
            would = "would, at its full weight, be" if self.switched_off else "is"
            lines.append(
                f"the objective {would} {f['trunk_gradient_share']:.1%} of the gradient at the trunk, cosine "
                f"{f['trunk_gradient_cosine']:+.2f} with cross entropy's"
            )
        return lines + [f"warning: {text}" for text in self.warnings]


def is_saved_monitor(state: Any) -> bool:
    """Whether what a checkpoint holds can be what `Watch.state_dict` gave."""
    try:
        figures, warnings, low = state["figures"], state["warnings"], state["low"]
        kept = (
            all(isinstance(value, int | float) for value in figures.values()),
            all(isinstance(warning, str) for warning in warnings),
            all(isinstance(steps, int) for steps in low.values()),
            state["raised"] is None or state["raised"].keys() == set(Collapse._fields),
        )
    except (AttributeError, KeyError, TypeError):
        return False
    return all(kept)
