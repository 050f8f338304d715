"""Monitor of an objective: measures at intervals, warns once, and reports its findings in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel
from jepa_lm.model.cross_entropy import mean_nll
from jepa_lm.objective.auxiliary_loss import AuxiliaryLoss
from jepa_lm.objective.batch_target import BatchTarget
from jepa_lm.objective.collapse import CollapseAlarm, is_saved_alarm
from jepa_lm.objective.diagnostics import prediction_quality, spread
from jepa_lm.objective.frozen import Frozen
from jepa_lm.objective.gradients import FirstSteps, trunk_gradients
from jepa_lm.objective.latent_prediction import LatentPrediction, Latents
from jepa_lm.objective.step_context import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.utils.precision import full_precision


class ObjectiveMonitor:
    """Diagnostics of one run.

    Args:
        objective: the objective to measure; it is not changed.
    """

    def __init__(self, objective: LatentPrediction) -> None:
        self.objective = objective
        self.alarm = CollapseAlarm(
            objective.diagnostics, _weakness(objective), _can_collapse(objective)
        )
        self.figures: dict[str, float] = {}
        """Figures of the latest measurement."""
        self.warnings: list[str] = []
        self.switched_off = False
        """True if the latest measurement fell into a phase without the objective."""

    def due(self, step: int) -> bool:
        """Return whether to measure at this step."""
        return step % self.objective.diagnostics.every == 0

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
        objective = self.objective
        devices = [batch["inputs"].device] if batch["inputs"].is_cuda else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            taps, keep = objective.main_needs(model)
            logits, main = model(batch["inputs"], taps, keep)
            ce = ce_weight * mean_nll(logits, batch["targets"], batch.get("weights"))
            latents = objective.compare(model, batch, main, step_context)
            components = objective.components(latents, step_context, all_of_them=True)
            aux = objective.total(components, step_context.clock)
            weight = objective.scale(step_context.clock) or objective.weight
            found: dict[str, Tensor] = {}
            if weight:
                found = trunk_gradients(
                    model,
                    ce,
                    weight * aux,
                    per_layer=objective.diagnostics.per_layer,
                    first_steps=first_steps,
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
        share = step_context.clock.share_of(objective.diagnostics.every)
        measurements = int(1 / share + 1e-6) if share else None
        return self._judge(step, rows, measurements, model.injector is not None)

    def _latents(self, latents: Latents, found: dict[str, Tensor]) -> dict[str, int]:
        """Add the figures of the latents to `found`; return the number of rows in each sample."""
        sample = self.objective.diagnostics.sample
        # All pairs together, [rows, D] each.
        prediction = torch.cat([p.flatten(0, -2) for p, _ in latents.normed])
        target = torch.cat([t.flatten(0, -2) for _, t in latents.normed])
        context = None
        if self.objective.predictor is not None:
            context = torch.cat([p.context.flatten(0, -2) for p in latents.pairs])
            if self.objective.normalisation is not None:
                context = self.objective.normalisation(context)
            context = sample(context)
        prediction = getattr(self.objective.distance, "as_target", lambda x: x)(prediction)
        if prediction.shape == target.shape:  # else only the head relates the two
            found |= prediction_quality(sample(prediction), sample(target), context)
        rows = {
            "context": sample(latents.context),
            "target": sample(latents.at("target")),
            "prediction": sample(latents.at("prediction")),
        }
        for tensor, x in rows.items():
            found |= {f"{tensor}_{figure}": value for figure, value in spread(x).items()}
        found["effective_rank"] = found["target_effective_rank"]
        return {tensor: len(x) for tensor, x in rows.items()}

    def _judge(
        self, step: int, rows: dict[str, int], measurements: int | None, injects: bool
    ) -> list[str]:
        before = len(self.warnings)
        collapse = self.alarm.read(step, self.figures, rows, measurements)
        if collapse is not None:
            self.warnings.append(str(collapse))
        untouched = (
            "the objective does not reach the trunk: its gradient there is exactly zero; "
            + (
                "only its injected features can change the score"
                if injects
                else "it cannot explain a change in the score"
            )
        )
        if self.figures.get("trunk_gradient_share") == 0.0 and untouched not in self.warnings:
            self.warnings.append(untouched)
        return self.warnings[before:]

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in plain containers."""
        return {"figures": self.figures, "warnings": self.warnings, **self.alarm.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.figures, self.warnings = state["figures"], state["warnings"]
        self.alarm.load_state_dict(state)

    def summary(self) -> dict[str, Any]:
        """Return the entries for summary.json."""
        raised = self.alarm.raised
        return {
            **self.figures,
            "collapse": None if raised is None else {**raised._asdict(), "kind": raised.kind},
            "warnings": self.warnings,
        }

    def in_words(self) -> list[str]:
        """Return sentences that explain the latest measurement."""
        if not self.figures:
            return []
        f, lines = self.figures, []
        if "r2" in f:
            verdict = "better" if f["r2"] > 0 else "no better"
            lines.append(
                f"predictions have cosine {f['cosine']:.2f} with their targets (1 is perfect; always "
                f"predicting the mean target: {f['cosine_of_mean']:.2f}) and explain "
                f"{max(0.0, f['r2']):.0%} of the variance of the targets: {verdict} than the mean"
            )
        if "r2_of_copy" in f:
            lines.append(f"copying the context would explain {max(0.0, f['r2_of_copy']):.0%}")
        if "target_rank_share" in f:  # not in what a former version measured
            possible = f["effective_rank"] / f["target_rank_share"]
            lines.append(
                f"targets span about {f['effective_rank']:.0f} of {possible:.0f} directions; their spread is "
                f"{f['target_relative_spread']:.2g} of their root mean square: {self.alarm.verdict()}"
            )
        if "trunk_gradient_share" in f:
            would = "would contribute, at its full weight," if self.switched_off else "contributes"
            lines.append(
                f"the objective {would} {f['trunk_gradient_share']:.1%} of the gradient at the trunk; its "
                f"cosine with the gradient of cross entropy is {f['trunk_gradient_cosine']:+.2f}"
            )
        if "trunk_step_cosine" in f:
            lines.append(
                f"the optimizer's step there has cosine {f['trunk_step_cosine']:.2f} with the step for cross "
                "entropy alone"
            )
        return lines + [f"warning: {text}" for text in self.warnings]


def shares(
    objective: AuxiliaryLoss,
    total: float,
    scale: float,
    components: dict[str, float],
    clock: ProgressClock,
) -> dict[str, float]:
    """Return what is logged of an objective at an interval: losses and their shares of the total.

    Args:
        total: the whole loss. components: `loss` and the objective's parts at the latest step with the
            objective; empty if there was none. scale: the weight of the objective at that step.
    """
    weights = objective.weights(clock)
    figures = {"weight": objective.scale(clock), **components}
    for name, value in components.items():
        key = "share" if name == "loss" else f"{name}_share"
        figures[key] = scale * weights.get(name, 1.0) * value / total if total else 0.0
    return figures


def is_saved_monitor(state: Any) -> bool:
    """Return whether a value from a checkpoint has the form of `ObjectiveMonitor.state_dict`."""
    if not isinstance(state, dict) or not {"figures", "warnings"} <= state.keys():
        return False
    figures, warnings = state["figures"], state["warnings"]
    return (
        isinstance(figures, dict)
        and isinstance(warnings, list)
        and all(type(value) in (int, float) for value in figures.values())
        and all(type(warning) is str for warning in warnings)
        and is_saved_alarm(state)
    )


def _can_collapse(objective: LatentPrediction) -> tuple[str, ...]:
    """Return the sides whose latents a run trains and that are no prediction, which may have any spread."""
    found = []
    if objective.context.tap != "injector_prediction":
        found.append("context")
    if not isinstance(objective.target, BatchTarget | Frozen):
        found.append("target")
    return tuple(found)


def _weakness(objective: LatentPrediction) -> str:
    """Return what in the composition may let latents collapse, for the alarm."""
    guards = [
        n for n, r in objective.regularizers.items() if r.weight and objective.regularizers_weight
    ]
    trained = not objective.target.stop_gradient and not objective.target.keeps_copy
    if trained and not guards:
        return (
            "targets are trained by the prediction loss (jepa.target.stop_gradient=false) and no "
            "regularizer keeps latents apart"
        )
    if not guards:
        return "no regularizer keeps latents apart: add one under jepa.regularizers"
    return f"raise the weight of jepa.regularizers.{guards[0]} or lower jepa.prediction_weight"
