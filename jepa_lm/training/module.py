"""The LightningModule: trains a language model on cross entropy and weighted auxiliary objectives.

    loss = ce_weight * ce_schedule * (cross entropy + z_loss_weight * z-loss)
           + jepa.weight * schedule * latent loss + tokens.weight * schedule * token loss

`model` is what ships. The objectives are separate modules beside it, never inside it.
Legend: B batch, T positions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.data.token_data import TokenData
from jepa_lm.model import LanguageModel
from jepa_lm.objective import LatentPrediction, StepContext, TokenPrediction
from jepa_lm.objective.auxiliary_loss import AuxiliaryLoss, main_needs
from jepa_lm.objective.checks import check_composition, check_start
from jepa_lm.objective.teacher import OpenTeacher
from jepa_lm.optim.recipe import OptimizerRecipe
from jepa_lm.quantization.policy import Policy
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.agreement import agree, require_one_start
from jepa_lm.training.auxiliary import (
    KEPT,
    READ,
    active_of,
    drawn,
    input_noise,
    noised,
    only_auxiliary,
    thinned,
)
from jepa_lm.training.averages import WeightAverages
from jepa_lm.training.callbacks.compiling import ClockStopsForCompiler
from jepa_lm.training.clipping import clip_gradients
from jepa_lm.training.ghost import run_ghost_steps
from jepa_lm.training.guard import FiniteGuard
from jepa_lm.training.run_state import load_run_state, save_run_state
from jepa_lm.training.validated import ValidatedModule
from jepa_lm.training.validation import catch_up
from jepa_lm.utils.config import build
from jepa_lm.utils.former_names import modern
from jepa_lm.utils.signals import StopRequest


class LanguageModelTask(ValidatedModule):
    """Trains and validates a language model.

    Args:
        config: the resolved run config as plain containers; every checkpoint includes it, so that
            evaluation and export can rebuild the model from the checkpoint alone.
        clock: the run's progress clock; None for one by the config's budget.
        open_teacher: loads the model that a `Frozen` target names.
    """

    def __init__(
        self,
        config: dict[str, Any],
        clock: ProgressClock | None = None,
        open_teacher: OpenTeacher | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("config", logger=False)
        self.config, self.metric = config, config.get("metric")
        parts = modern(config)  # `load_from_checkpoint` passes on what is in the file
        budget = config["trainer"]
        self.clock = clock or ProgressClock(
            max_steps=budget["max_steps"], max_time=budget["max_time"]
        )
        self.model: LanguageModel = build("model", parts["model"])
        self.objective: LatentPrediction | None = None
        if "_target_" in config["jepa"]:
            self.objective = objective = build("jepa", parts["jepa"])
            objective.prepare(self.model, open_teacher)
            made_from = [config["model"], config["jepa"]]
            check_composition(objective, self.model, config["data"]["seq_len"], made_from=made_from)
        self.tokens: TokenPrediction | None = None
        if "_target_" in parts.get("tokens", {}):
            self.tokens = build("tokens", parts["tokens"])
            self.tokens.prepare(self.model, config["data"]["seq_len"], self.objective)
        main_needs(self.model, self.auxiliaries.values())
        self.noise = input_noise(config)
        self.recipe: OptimizerRecipe = build("optimizer", parts["optimizer"])
        self.recipe.apply_freeze(self)
        self.frozen = sorted(n for n, p in self.named_parameters() if not p.requires_grad)
        if self.objective is not None:
            check_start(self.objective)
        self.policy: Policy = build("quantization", parts["quantization"])
        self.formats = self.policy.assign(self.model)
        self.averages: WeightAverages[LanguageModel] = WeightAverages(
            self.model, **config["average"]
        )
        self.guard = FiniteGuard(**config["guard"])
        self.stop = StopRequest()
        self.compiler = ClockStopsForCompiler()
        self.live: dict[str, float] = {}
        """Latest training figures, for the progress bar and the summary."""
        self.losses = self._losses
        self.active: frozenset[str] = frozenset()
        """Keys of the objectives that the latest loss includes."""

    @property
    def auxiliaries(self) -> dict[str, AuxiliaryLoss]:
        """The objectives of this run by the key of their settings, `jepa` or `tokens`."""
        return {loss.node: loss for loss in (self.objective, self.tokens) if loss is not None}

    def phases(self) -> dict[str, Any]:
        """Return the phases of every schedule of the run by its key, for `describe=true`."""
        found = self.recipe.phases()
        for objective in self.auxiliaries.values():
            found |= objective.phases()
        return found

    def check_data(self, data: TokenData) -> None:
        """Check that the objective can read this data, and that they have the metric.

        Raises:
            UserError: it needs another tokenizer, or a field that the data lacks, or they lack the metric.
        """
        data.check_metric(self.metric)
        if self.objective is not None:
            self.objective.target.check_data(data.tokenizer.fingerprint, data.fields)

    def setup(self, stage: str) -> None:
        """Compile the loss if the run is to be compiled, which is known by now."""
        super().setup(stage)
        data = self.trainer.datamodule.data  # type: ignore[attr-defined]
        if self.objective is not None:
            self.objective.document_start = data.tokenizer.bos_id
        if self.config["compile"] and stage == "fit":
            # The function is compiled, not the module: checkpoint keys stay clean.
            self.losses = torch.compile(self._losses)

    def configure_optimizers(self) -> Any:
        """Return one optimizer for Muon and AdamW, and a scheduler that follows the clock after each step."""
        optimizer, scheduler = self.recipe.configure(self, self.clock)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # ---- one training step: for each micro-batch `training_step` and backward; then gradients are clipped,
    # the optimizer steps, and `lr_scheduler_step` ends the step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch; cross entropy is the mean in nats per token."""
        # The clock says how far the run is, and so how much each loss weighs now.
        objectives, weight = self.auxiliaries, self.ce_weight()
        self.active = active_of(objectives, self.clock)
        place = self.step_context(batch_idx)
        context = drawn(objectives, self.active, batch, place)
        read = thinned(self.model, self.config["seed"], noised(self.noise, batch, place), place)
        loss, ce, components = self.losses(read, context)
        loss = loss if weight == 1 else weight * loss
        seen = {"train/ce": ce}
        for key, parts in components.items():
            scale = objectives[key].scale(self.clock)
            aux = objectives[key].total(parts, self.clock)
            loss = loss + scale * aux
            self.training_log.keep_objective(key, scale, aux, parts)
            seen |= {f"{key}/{name}": part for name, part in parts.items()}
        # Values stay on the device; the guard and the log read them at log points.
        step = self.trainer.global_step + 1
        for name, value in {**seen, "train/loss": loss}.items():
            self.guard.see(step, name, value)
        due = step % self.trainer.log_every_n_steps == 0 and self.ends_step(batch_idx)  # type: ignore[attr-defined]
        if due and self.training_log.begun:  # ghost steps are not logged
            self.training_log.keep(batch, ce, loss)
        return loss if self.trainer.world_size == 1 else loss + self._touch()

    def ce_weight(self) -> float:
        """Return the current factor on the cross entropy."""
        scheduled = 1.0 if self.objective is None else self.objective.ce_scale(self.clock)
        return float(self.config["ce_weight"] * scheduled)

    def _losses(
        self, batch: Batch, step_context: StepContext | None
    ) -> tuple[Tensor, Tensor, dict[str, dict[str, Tensor]]]:
        """Return cross entropy with z-loss, cross entropy, and components by objective; this is compiled."""
        needs = main_needs(self.model, self.auxiliaries.values())
        read = batch.get(READ, batch["inputs"])
        main = self.model.encode(self.model.embed(read), *needs, batch.get(KEPT))
        z_weight, weights = self.config["z_loss_weight"], batch.get("weights")
        loss, ce, _ = self.model.cross_entropy(main.final, batch["targets"], z_weight, weights)
        found: dict[str, dict[str, Tensor]] = {}
        if step_context is None:  # the control, or a phase without an objective
            return loss, ce, found
        for key, objective in self.auxiliaries.items():
            if key not in step_context.without:
                found[key] = objective.components(self.model, batch, main, step_context)
        return loss, ce, found

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Finish an optimizer step, however many micro-batches it took: log, clock, rates, averages, stop."""
        self.model.round_parameters()
        if self.training_log.due:  # before the clock advances, so that figures match the weights
            if self.trainer.world_size == 1:  # with several, the clock calls `agree` itself
                agree(self, self.clock.elapsed)
            self._log_step()
        if self.objective is not None:  # before the clock advances, too: as published (#1581)
            self.objective.after_step(self.model, self.clock)
        self.clock.advance()
        scheduler.step()
        self.averages.update(self.model, step=self.clock.step, lr_factor=scheduler.factor)
        if self.trainer.world_size == 1:
            self.stop.agreed = self.stop.asked
        if self.clock.done or self.stop.agreed:
            self.trainer.should_stop = True
        if self.stop.hurried:
            self.trainer.limit_val_batches = 0
            self.scores = {}  # scores of an earlier step are not the run's final ones

    # ---- what belongs to a step

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Remove the zero gradients that `_touch` gave to parameters of an inactive objective."""
        if self.trainer.world_size > 1:
            for key, parameters in only_auxiliary(self.auxiliaries, self.model).items():
                if key not in self.active:
                    for parameter in parameters:
                        parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the norm of the gradient, clip by it, and skip the step if it is NaN or infinite."""
        clip_gradients(self, optimizer, gradient_clip_val)

    def _log_step(self) -> None:
        """Log the figures of the step. `self.log` would keep results for the whole loop: milliseconds."""
        assert self.train_bytes is not None
        tokens = self.config["data"]["batch_tokens"]
        self.live = self.training_log.read(self.clock, self.auxiliaries, self.train_bytes, tokens)
        for logger in self.loggers:
            logger.log_metrics(self.live, step=self.clock.step)

    def ends_step(self, batch_idx: int) -> bool:
        """Return whether this micro-batch is the last one of its step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def step_context(self, batch_idx: int) -> StepContext:
        """Return the context of a micro-batch: clock, number within its step, rank, world size."""
        return StepContext(
            clock=self.clock,
            micro_batch=batch_idx % self.trainer.accumulate_grad_batches,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )

    def _touch(self) -> Tensor | float:
        """Return a zero that depends on each parameter a phase may not use: DDP waits for all gradients."""
        unused = only_auxiliary(self.auxiliaries, self.model).values()
        return 0.0 * sum(p.sum() for mine in unused for p in mine)

    def on_train_start(self) -> None:
        """Run the ghost steps of a new run, then start the clock and the first interval."""
        if self.trainer.world_size > 1:
            require_one_start(self.clock.step, self.config["ckpt_path"])
        self.trainer.should_stop = self.clock.done  # a restored run may have used up its budget
        self.keep_tables()
        if self.recipe.ghost_steps and self.trainer.global_step == 0:
            run_ghost_steps(self, self.recipe.ghost_steps)
        if self.trainer.world_size > 1:
            self.clock.exchange = partial(agree, self)
            self.clock.exchange_every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        every, chooses = self.config["trainer"]["val_check_interval"], self.averages.ship == "best"
        catch_up(self.trainer, self.resumed, every, chooses=chooses)
        self.clock.start()
        self.training_log.begin(self.trainer.global_step)

    def keep_tables(self) -> None:
        """Make what compiled passes read, such as rotary tables, for the lengths of this run's passes."""
        seq_len, backbone = self.config["data"]["seq_len"], self.model.backbone
        backbone.keep_tables(seq_len, self.device)
        for objective in self.auxiliaries.values():
            objective.keep_tables(backbone, seq_len, self.device)

    def on_train_end(self) -> None:
        """Stop the clock."""
        self.stop_clock()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that a resumed run needs in addition to weights and optimizer."""
        save_run_state(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state that `on_save_checkpoint` added."""
        load_run_state(self, checkpoint)
