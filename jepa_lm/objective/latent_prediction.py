"""The objective: context latents predict target latents, with regularizers against collapse.

    context view -> encoder -> tap -> pooling -> projector -> context latents
    target source                  -> pooling -> projector -> target latents
    alignment and predictor -> pairs (prediction, target)
    loss = prediction_weight * sum_pairs share * distance(norm(prediction), norm(sg(target)))
           + regularizers_weight * sum_regularizers weight * regularizer

`jepa.weight` times the schedule scales this whole loss; the task adds it to the cross entropy. Parts
are chosen in YAML, so a new recipe is a YAML file. Statistics (variance, covariance, SIGReg) are taken
over the micro-batch of a rank, or over those of all ranks with `global_statistics`; the prediction loss
is always the mean over a rank's micro-batch, which DDP averages over ranks.
Legend: B batch, N latents of a row, D latent width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from jepa_lm.data.stream import Batch
from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.model.unet import UNet
from jepa_lm.objective.alignment import Alignment
from jepa_lm.objective.auxiliary_loss import AuxiliaryLoss
from jepa_lm.objective.context import Context
from jepa_lm.objective.diagnostics import MonitorSettings
from jepa_lm.objective.distances import Sum
from jepa_lm.objective.latents import PARTS, Latents
from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.objective.padding import both, of_text
from jepa_lm.objective.passes import MainPass, limit_reach
from jepa_lm.objective.placebo import of_rows
from jepa_lm.objective.predictors import Predictor, once
from jepa_lm.objective.regularizers import Regularizer
from jepa_lm.objective.step_context import Draws, StepContext
from jepa_lm.objective.targets import Target
from jepa_lm.objective.teacher import OpenTeacher
from jepa_lm.objective.views import RandomView, View
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import NotNegative, Whole, checked
from jepa_lm.utils.precision import full_precision

ALIGNMENT = "alignment"
"""Place of the alignment's draws in a step context."""
GUARDS = "regularizers."
"""Regularizers' draws are found under their names after this."""


class LatentPrediction(AuxiliaryLoss):
    """JEPA objective: an auxiliary loss composed of parts.

    Args:
        weight: factor on the whole auxiliary loss. schedule: scheduled factor on it, or None.
        ce_schedule: scheduled factor on the cross entropy, or None; it has no effect if weight is 0,
            which means cross entropy alone for every objective.
        prediction_weight: weight of the prediction within the auxiliary loss. regularizers_weight: factor
            on all regularizers, in addition to their own weights.
        placebo: control in which each prediction is compared with the target of another row of the batch,
            of another document: parameters, FLOPs, form stay the same, but there is nothing to predict.
        reach: the objective trains only the last n blocks of the trunk; None trains all of it.
        global_statistics: compute regularizers, and the candidates of InfoNCE, over the rows of all ranks.
        when_zero: while the schedule gives 0, either leave the objective out (`skip`), so that the
            optimizer does not touch its modules, or multiply it by 0 (`multiply`), so that their moments
            keep being updated (#832).
        draws: random draws such as spans are `shared` by all ranks or made `per_rank`. Draws of
            regularizers stay shared with `global_statistics`, as joint samples need the same directions.
        context, target, alignment, distance: see their modules.
        projector: applied to both sides before predictor and distance, or None.
        predictor: maps context latents to target latents, or None for the latents themselves.
        normalisation: applied to both sides before the distance, or None.
        regularizers: by name; they are logged under their names.
        diagnostics: settings of the diagnostics and of the collapse alarm.

    Raises:
        UserError: a value is out of range, or the parts do not fit each other.
    """

    node = "jepa"

    @checked
    def __init__(
        self,
        *,
        weight: NotNegative,
        context: Context,
        target: Target,
        alignment: Alignment,
        distance: nn.Module,
        diagnostics: MonitorSettings,
        predictor: Predictor | None = None,
        projector: Predictor | None = None,
        normalisation: Normalisation | None = None,
        regularizers: Mapping[str, Regularizer] | None = None,
        prediction_weight: NotNegative = 1.0,
        regularizers_weight: NotNegative = 1.0,
        placebo: bool = False,
        schedule: Schedule | None = None,
        ce_schedule: Schedule | None = None,
        reach: Whole | None = None,
        global_statistics: bool = False,
        draws: Literal["shared", "per_rank"] = "shared",
        when_zero: Literal["skip", "multiply"] = "skip",
    ) -> None:
        super().__init__(weight=weight, schedule=schedule, placebo=placebo, reach=reach)
        self.ce_schedule, self.when_zero = ce_schedule, when_zero
        self.prediction_weight, self.regularizers_weight = prediction_weight, regularizers_weight
        self.global_statistics, self.draws = global_statistics, draws
        self.context, self.target, self.alignment = context, target, alignment
        self.projector, self.predictor = projector, predictor
        self.normalisation, self.distance = normalisation, distance
        self.regularizers = nn.ModuleDict(dict(regularizers or {}))
        self.diagnostics = diagnostics
        self.document_start: int | None = None
        """Token that starts a document, None if the tokenizer has none; a run sets it."""
        self.latents: dict[str, int] = {}
        """Latents in a row of each tensor of `Latents.at`, where the config alone decides."""
        reserved = {"prediction", "loss", "weight", "share"}
        for name in self.regularizers:
            if name in reserved or name.startswith(PARTS):
                raise UserError(f"jepa.regularizers.{name}: this name is reserved, choose another")
        guarded = regularizers_weight and any(r.weight for r in (regularizers or {}).values())
        if not prediction_weight and not guarded:
            raise UserError(
                "jepa.prediction_weight=0: leaves nothing to train without a regularizer of positive weight; "
                "for the control, set jepa.weight=0"
            )
        alignment.check_predictor(predictor)
        if alignment.needs_mask and not (context.view is not None and context.view.masks):
            raise UserError(
                "jepa.alignment: MaskedPositions needs a jepa.context.view that masks, such as SpanMask"
            )

    # ---- at the start of a run

    def prepare(self, model: LanguageModel, open_teacher: OpenTeacher | None = None) -> None:
        """Copy what follows the model, load a teacher, and freeze what `reach` leaves without a gradient.

        Args:
            open_teacher: loads the model that a config names, for a target that reads one.

        Raises:
            UserError: `reach` exceeds the number of blocks, or a teacher cannot be used.
        """
        self.check_reach(model)
        if self.reach is not None:
            for vector in self.context.parameters():  # the view's, which lies below every block
                vector.requires_grad_(False)
        self.target.load(model, open_teacher)
        self.target.follow(model, self.projector)

    # ---- weights over the clock

    def active(self, clock: ProgressClock) -> bool:
        """See `AuxiliaryLoss.active`; `when_zero` says whether a schedule that gives 0 leaves it out."""
        return bool(self.weight) and (self.when_zero == "multiply" or super().active(clock))

    def ce_scale(self, clock: ProgressClock) -> float:
        """Return the current factor on the cross entropy."""
        return 1.0 if self.ce_schedule is None or not self.weight else self.ce_schedule(clock)

    def schedules_by_key(self) -> dict[str, Schedule | None]:
        """See `AuxiliaryLoss.schedules_by_key`."""
        parts = dict(self._regularizing(all_of_them=True))
        return {
            **super().schedules_by_key(),
            "jepa.ce_schedule": self.ce_schedule,
            **{f"jepa.regularizers.{name}.schedule": part.schedule for name, part in parts.items()},
            "jepa.target.momentum": getattr(self.target, "momentum", None),
        }

    # ---- the loss

    def taps(self, model: LanguageModel) -> set[int]:
        """See `AuxiliaryLoss.taps`."""
        return {*self.context.main_taps(model), *self.target.main_taps(model)}

    def components(
        self, model: LanguageModel, batch: Batch, main: Encoded, step_context: StepContext
    ) -> dict[str, Tensor]:
        """See `AuxiliaryLoss.components`."""
        return self.losses_of(self.compare(model, batch, main, step_context), step_context)

    def _views(self) -> dict[str, View]:
        """Return the views of the text beside the main pass, by place."""
        found = {"context": self.context.view, "target": getattr(self.target, "view", None)}
        return {place: view for place, view in found.items() if view is not None}

    def keep_tables(self, backbone: UNet, seq_len: int, device: torch.device) -> None:
        """Make the tables of the passes beside the main one, and those that predictors read."""
        for view in self._views().values():
            backbone.keep_tables(view.length(seq_len), device)
        self.target.keep_tables(seq_len, device)
        for part in self.modules():
            if isinstance(part, Predictor) and "context" in self.latents:
                part.keep_tables(self.latents["context"], device)

    def stand_in(self, inputs: Tensor) -> Batch:
        """See `AuxiliaryLoss.stand_in`."""
        return {**super().stand_in(inputs), **self.target.stand_in(inputs)}

    def _draws(self, inputs: Tensor, step_context: StepContext) -> dict[str, Draws]:
        views, rest = self._of_views(step_context), self._of_regularizers(step_context)
        places: dict[str, Draws] = {}
        for place, view in self._views().items():
            if isinstance(view, RandomView):
                places[place] = view.draw(inputs.shape, views, place, inputs.device)
        places |= self._draw_other_rows(len(inputs), views, inputs.device)
        if "context" in self.latents:
            rows, latents = len(inputs), self.latents["context"]
            places[ALIGNMENT] = self.alignment.draw(rows, latents, views, inputs.device)
        for name, part in self._regularizing():
            if part.tensor in self.latents:
                places[GUARDS + name] = part.draw(self.latents[part.tensor], rest, inputs.device)
        return places

    def _of_views(self, step_context: StepContext) -> StepContext:
        return replace(step_context, per_rank=self.draws == "per_rank")

    def _of_regularizers(self, step_context: StepContext) -> StepContext:
        joint = self.global_statistics and step_context.world_size > 1
        own = self.draws == "per_rank" and not self.global_statistics
        return replace(step_context, joint=joint, per_rank=own)

    def _regularizing(self, *, all_of_them: bool = False) -> Iterator[tuple[str, Regularizer]]:
        """Yield the regularizers with a weight, or all."""
        for name, part in self.regularizers.items():
            assert isinstance(part, Regularizer)
            if all_of_them or (part.weight and self.regularizers_weight):
                yield name, part

    def compare(
        self, model: LanguageModel, batch: Batch, main: Encoded, step_context: StepContext
    ) -> Latents:
        """Compute predictions, targets and context latents of a micro-batch."""
        step_context = self._of_views(step_context)
        encoded = limit_reach(model, main, self.taps(model), self.reach)
        read = MainPass(batch, encoded, step_context, self.reach)
        context, masked = self.context(model, read)
        project = None if self.projector is None else once(self.projector)
        if project is not None:
            context = project(context)
        target = self.target(model, read._replace(context=context), project)
        mine = of_text(self.context, model, batch)
        theirs = of_text(self.target, self.target.source(model), batch)
        if self.placebo:
            order = self._other_rows(len(target), step_context, target.device)
            target, theirs, batch = of_rows(order, target, theirs, batch)
        at, text = step_context.at(ALIGNMENT), both(mine, theirs)
        given = self.alignment.given(
            model, batch, masked, text, self.document_start, self.reach, at
        )
        pairs = [
            p._replace(
                prediction=p.prediction.float(), target=p.target.float(), context=p.context.float()
            )
            for p in self.alignment(self.predictor, context, target, given)
        ]
        norm, stop = self.normalisation or nn.Identity(), self.target.stop_gradient
        normed = [
            (norm(p.prediction), norm(p.target.detach() if stop else p.target)) for p in pairs
        ]
        return Latents(pairs, normed, context.float(), model, self.target.source(model))

    def losses_of(
        self, latents: Latents, step_context: StepContext, *, all_of_them: bool = False
    ) -> dict[str, Tensor]:
        """Return unweighted `prediction` loss and regularizers; those of weight 0 only if `all_of_them`."""
        step_context = self._of_regularizers(step_context)
        found: dict[str, Tensor] = {}
        with full_precision(latents.context.device):
            if self.prediction_weight or all_of_them:
                found |= latents.distances(self.distance, step_context)
            for name, part in self._regularizing(all_of_them=all_of_them):
                found[name] = part(latents.at(part.tensor), step_context.at(GUARDS + name))
        return found

    def total(self, components: Mapping[str, Tensor], clock: ProgressClock) -> Tensor:
        """Return the weighted sum of the components, the loss before `scale`."""
        weights = self.weights(clock)
        whole = (name for name in components if not name.startswith(PARTS))
        return torch.stack([weights[name] * components[name] for name in whole]).sum()

    def weights(self, clock: ProgressClock) -> dict[str, float]:
        """See `AuxiliaryLoss.weights`."""
        found = {"prediction": self.prediction_weight}
        if isinstance(self.distance, Sum):
            for name, weight in self.distance.weights.items():
                found[PARTS + name] = self.prediction_weight * weight
        for name, part in self._regularizing(all_of_them=True):
            weight = self.regularizers_weight * part.weight
            found[name] = weight * (1.0 if part.schedule is None else part.schedule(clock))
        return found

    # ---- after a step

    def after_step(self, model: LanguageModel, clock: ProgressClock) -> None:
        """Update the copies that follow the model. Called once after each optimizer step."""
        if self.weight:
            self.target.after_step(model, self.projector, clock)
