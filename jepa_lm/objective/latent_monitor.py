"""Monitor of a latent objective: also looks at its latents, and warns once of a collapse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.objective.batch_target import BatchTarget
from jepa_lm.objective.collapse import CollapseAlarm, is_saved_alarm
from jepa_lm.objective.diagnostics import prediction_quality, spread
from jepa_lm.objective.frozen import Frozen
from jepa_lm.objective.latent_prediction import LatentPrediction, Latents
from jepa_lm.objective.monitor import Monitor
from jepa_lm.objective.step_context import StepContext


class LatentMonitor(Monitor):
    """Monitor that also describes latents, and keeps an alarm for their collapse."""

    name = "the objective"
    objective: LatentPrediction

    def __init__(self, objective: LatentPrediction) -> None:
        settings = objective.diagnostics
        super().__init__(objective, settings.every, per_layer=settings.per_layer)
        self.alarm = CollapseAlarm(settings, _weakness(objective), _can_collapse(objective))

    def _compute(
        self, model: LanguageModel, batch: Batch, main: Encoded, step_context: StepContext
    ) -> tuple[dict[str, Tensor], Latents]:
        latents = self.objective.compare(model, batch, main, step_context)
        return self.objective.losses_of(latents, step_context, all_of_them=True), latents

    def _describe(
        self, model: LanguageModel, latents: Latents, found: dict[str, Tensor]
    ) -> dict[str, int]:
        """Add the figures of the latents; return the number of rows in each sample."""
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
        apart = self.objective.target.distance(model, self.objective.projector)
        if apart is not None:
            found["ema_distance"] = apart
        return {tensor: len(x) for tensor, x in rows.items()}

    def _judge(
        self, step: int, step_context: StepContext, model: LanguageModel, rows: dict[str, int]
    ) -> None:
        share = step_context.clock.share_of(self.every)
        measurements = int(1 / share + 1e-6) if share else None
        collapse = self.alarm.read(step, self.figures, rows, measurements)
        if collapse is not None:
            self.warnings.append(str(collapse))
        untouched = (
            "the objective does not reach the trunk: its gradient there is exactly zero; "
            + (
                "it cannot explain a change in the score"
                if model.injector is None
                else "only its injected features can change the score"
            )
        )
        if self.figures.get("trunk_gradient_share") == 0.0 and untouched not in self.warnings:
            self.warnings.append(untouched)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in plain containers."""
        return {**super().state_dict(), **self.alarm.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.alarm.load_state_dict(state)

    @classmethod
    def is_state(cls, state: Any) -> bool:
        """Return whether a value from a checkpoint has the form of `state_dict`."""
        return super().is_state(state) and is_saved_alarm(state)

    def summary(self) -> dict[str, Any]:
        """Return the entries for summary.json."""
        raised = self.alarm.raised
        return {
            **super().summary(),
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
        lines += super().in_words()
        if "trunk_step_cosine" in f:
            lines.append(
                f"the optimizer's step there has cosine {f['trunk_step_cosine']:.2f} with the step for cross "
                "entropy alone"
            )
        return lines + [f"warning: {text}" for text in self.warnings]


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
