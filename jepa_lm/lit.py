"""The LightningModule: cross entropy and a weighted objective over a language model, on one clock.

    loss = ce_weight * ce_schedule * (cross entropy + z_loss_weight * z-loss)
           + jepa.weight * schedule * auxiliary loss

`model` is what ships. The objective has its place beside it, never inside it.
Legend: B batch, T positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from jepa_lm.callbacks.measuring import MeasureObjective
from jepa_lm.callbacks.stored import TrainOnStoredWeights
from jepa_lm.config import build
from jepa_lm.data.stream import Batch
from jepa_lm.errors import require_finite
from jepa_lm.evaluation.bpb import BPBMeter, ByteCounter, Score, score_batch, score_from_sums
from jepa_lm.model import Encoded, LanguageModel, token_nll, z_loss
from jepa_lm.objective import LatentPrediction, Moment
from jepa_lm.objective.composition import check_start
from jepa_lm.objective.watch import Watch
from jepa_lm.optim.averages import WeightAverage
from jepa_lm.optim.clock import ProgressClock
from jepa_lm.optim.ghost import run_ghost_steps
from jepa_lm.optim.recipe import OptimizerRecipe
from jepa_lm.quantization.policy import Policy
from jepa_lm.quantization.training import StoredWeights, stored_copy


class LanguageModelTask(LightningModule):
    """Trains and validates a language model.

    Args:
        config: the resolved run config as plain containers; it travels in every checkpoint, so
            that evaluation and export rebuild the model from the checkpoint alone.
        clock: of the run; None (when a checkpoint is loaded for evaluation) makes no optimizer.
    """

    def __init__(self, config: dict[str, Any], clock: ProgressClock | None = None) -> None:
        super().__init__()
        self.save_hyperparameters("config", logger=False)
        self.config, self.clock = config, clock
        self.model: LanguageModel = build("model", config["model"])
        self.objective: LatentPrediction | None = None
        self.watch: Watch | None = None
        if "_target_" in config["jepa"]:
            self.objective = objective = build("jepa", config["jepa"])
            objective.prepare(self.model, config["data"]["seq_len"])
            self.watch = Watch(objective)
        self.recipe: OptimizerRecipe = build("optimizer", config["optimizer"])
        self.recipe.apply_freeze(self)
        self.frozen = sorted(n for n, p in self.named_parameters() if not p.requires_grad)
        if self.objective is not None:
            check_start(self.objective)
        self.policy: Policy = build("quantization", config["quantization"])
        self.formats = self.policy.assign(self.model)
        self.stored: StoredWeights | None = None
        """Swaps in the weights as stored, where the run trains on them."""
        if self.policy.training.ever:
            self.stored = StoredWeights(self.model, self.policy.training.formats(self.formats))
        self.average: WeightAverage[LanguageModel] | None = None
        if (decay := config.get("average", {}).get("decay")) is not None:
            self.average = WeightAverage(self.model, decay=decay)
        self.byte_counter: ByteCounter | None = None
        self.scores: dict[str, Score] = {}
        """Of the newest validation, by weights: `shipped`; `raw` where an average is shipped; `quantized`
        where the run has trained on stored weights."""
        self.live: dict[str, float] = {}
        """Newest training figures, for the progress bar and the summary."""
        self.ce = self._cross_entropy
        if config["compile"]:
            # The function is compiled, not the module: checkpoint keys stay clean.
            self.ce = torch.compile(self._cross_entropy)
        self._scored: dict[str, LanguageModel] = {}
        self._meters: dict[str, BPBMeter] = {}
        self._interval = (0, 0.0)
        self._active = False
        """Whether the objective is part of the newest loss."""
        self._newest: tuple[float, dict[str, Tensor]] = (0.0, {})
        """Scale and components of the newest step that had the objective, until they are logged."""

    @property
    def shipped(self) -> LanguageModel:
        """The model that is scored and exported: the average where there is one."""
        return self.model if self.average is None else self.average.model

    def setup(self, stage: str) -> None:
        """Learn from the tokenizer how many bytes each token stands for."""
        table = self.trainer.datamodule.tokenizer.token_bytes()  # type: ignore[attr-defined]
        self.byte_counter = ByteCounter(table).to(self.device)

    def configure_optimizers(self) -> Any:
        """Muon and AdamW in one optimizer; the scheduler follows the clock after each step."""
        assert self.clock is not None
        optimizer, scheduler = self.recipe.configure(self, self.clock)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_callbacks(self) -> list[Callback]:
        """Measuring comes with the objective, swapping with the quantization, not with a setting."""
        return [TrainOnStoredWeights(), MeasureObjective()]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Called once after each optimizer step, however many micro-batches it took."""
        assert self.clock is not None
        self.clock.advance()
        scheduler.step()
        if self.objective is not None:
            self.objective.after_step(self.model, self.clock)
        if self.average is not None:
            self.average.update(self.model)
        if self.clock.done:
            self.trainer.should_stop = True

    def _cross_entropy(self, batch: Batch) -> tuple[Tensor, Tensor | None, Encoded]:
        needs = () if self.objective is None else self.objective.main_needs(self.model)
        logits, main = self.model(batch["inputs"], *needs)
        z = z_loss(logits) if self.config["z_loss_weight"] else None
        return token_nll(logits, batch["targets"]).mean(), z, main

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a micro-batch; cross entropy is its mean in nats."""
        ce, z, main = self.ce(batch)
        weight = self.config["ce_weight"]
        scale = 0.0
        moment = None
        if self.objective is not None:
            moment = self.moment(batch_idx)
            weight *= self.objective.ce_scale(moment.clock)
            scale = self.objective.scale(moment.clock)
        loss = ce if z is None else ce + self.config["z_loss_weight"] * z
        loss = loss if weight == 1 else weight * loss
        self._active = scale != 0
        if self._active:
            assert self.objective is not None
            assert moment is not None
            aux, components = self.objective(self.model, batch, main, moment)
            self._newest = scale, {"loss": aux.detach(), **components}
            loss = loss + scale * aux
        if self.trainer.world_size > 1:
            loss = loss + self._touch()
        step = self.trainer.global_step + 1
        due = step % self.trainer.log_every_n_steps == 0 and self.ends_step(batch_idx)  # type: ignore[attr-defined]
        # Logging waits for the host to read the loss, so it happens on the interval alone.
        if due and self.clock is not None and self.clock.running:
            self._log_interval(step, batch, ce.detach(), loss.detach())
        return loss

    def ends_step(self, batch_idx: int) -> bool:
        """Whether this micro-batch is the last one of its step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def trains_stored(self) -> bool:
        """Whether a step now sees the weights as they will be stored."""
        assert self.clock is not None
        assert self.recipe.lr is not None
        lr_factor = self.recipe.lr(self.clock)
        return self.policy.training.active(self.clock.progress, lr_factor)

    def moment(self, batch_idx: int) -> Moment:
        """Where in the run a micro-batch stands."""
        assert self.clock is not None
        return Moment(
            clock=self.clock,
            micro_batch=batch_idx % self.trainer.accumulate_grad_batches,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )

    def _only_auxiliary(self) -> list[nn.Parameter]:
        """Trainable parameters that cross entropy never reaches."""
        found = [] if self.objective is None else list(self.objective.parameters())
        if self.model.injector is not None:
            found += self.model.injector.behind_stop_gradient()
        return [p for p in found if p.requires_grad]

    def _touch(self) -> Tensor | float:
        """Zero, of every parameter that a phase may leave out: DDP waits for each of them."""
        return 0.0 * sum(p.sum() for p in self._only_auxiliary())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """A parameter whose objective is switched off has no gradient, whatever `_touch` gave it."""
        if self.trainer.world_size > 1 and not self._active:
            for parameter in self._only_auxiliary():
                parameter.grad = None

    def _log_interval(self, step: int, batch: Batch, ce: Tensor, loss: Tensor) -> None:
        assert self.clock is not None
        assert self.byte_counter is not None
        scale, components = self._newest
        self._newest = (0.0, {})
        n_bytes = self.byte_counter(batch["inputs"], batch["targets"]).sum()
        parts = torch.stack((ce, loss, n_bytes.float(), *components.values())).tolist()
        nats, total, n_bytes, *values = parts
        jepa = dict(zip(components, values, strict=True))
        named = {f"jepa/{name}": value for name, value in jepa.items() if name != "loss"}
        saved = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
        require_finite(step, {**named, "train/ce": nats, "train/loss": total}, saved)
        now = time.perf_counter()
        (first, then), self._interval = self._interval, (step, now)
        tokens = (step - first) * self.config["data"]["batch_tokens"]
        self.live = {
            "train/loss": total,
            "train/ce": nats,
            "train/bpb": nats * batch["targets"].numel() / math.log(2) / max(n_bytes, 1.0),
            "train/progress": self.clock.progress,
            "train/seconds": self.clock.elapsed,
            "train/tokens_per_second": tokens / (now - then),
        }
        if self.watch is not None:
            self.live |= self.watch.interval(total, scale, jepa, self.clock)
        # `self.log` keeps results for the whole loop and costs milliseconds; these are finished figures.
        for logger in self.loggers:
            logger.log_metrics(self.live, step=step - 1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning sets this string some 46 times a step; through `nn.Module` that takes 80 us."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_train_start(self) -> None:
        """Run the ghost steps of a new run, then start the clock and the first interval."""
        assert self.clock is not None
        if self.recipe.ghost_steps and self.trainer.global_step == 0:
            run_ghost_steps(self, self.recipe.ghost_steps)
        if self.trainer.world_size > 1:
            self.clock.exchange = self._rank_zero
        self.clock.start()
        self._interval = (self.trainer.global_step, time.perf_counter())

    def _rank_zero(self, value: float) -> float:
        """Rank 0's value on every rank."""
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return shared.item()

    def on_train_end(self) -> None:
        """Stop the clock."""
        assert self.clock is not None
        self.clock.stop()

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """What is done inside is no training time, and does not slow the shown speed."""
        began = time.perf_counter()
        running = self.clock is not None and self.clock.running
        if self.clock is not None:
            self.clock.stop()
        yield
        step, start = self._interval
        self._interval = (step, start + time.perf_counter() - began)
        if running and self.clock is not None:
            self.clock.start()

    def on_validation_start(self) -> None:
        """Validation does not count as training time."""
        self._validation = self.not_training()
        self._validation.__enter__()
        self._scored = {"shipped": self.shipped}
        if self.average is not None:
            self._scored["raw"] = self.model
        if self.stored is not None and self.stored.first_step is not None:
            self._scored["quantized"] = stored_copy(self.shipped, self.formats)
        self._meters = {name: BPBMeter().to(self.device) for name in self._scored}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of windows by plain cross entropy, with each set of weights."""
        assert self.byte_counter is not None
        for name, model in self._scored.items():
            score_batch(model, batch, self.byte_counter, self._meters[name])

    def on_validation_epoch_end(self) -> None:
        """Add up over ranks and log the scores."""
        self.scores = {name: self._summed(meter) for name, meter in self._meters.items()}
        for name, score in self.scores.items():
            end = "" if name == "shipped" else f"_{name}"
            self.log_dict({f"val/nll{end}": score.nll, f"val/bpb{end}": score.bpb})

    def _summed(self, meter: BPBMeter) -> Score:
        sums = self.trainer.strategy.reduce(meter.sums.clone(), reduce_op="sum")
        assert isinstance(sums, Tensor)
        return score_from_sums(*sums.tolist())

    def on_validation_end(self) -> None:
        """Run the clock again."""
        self._validation.__exit__(None, None, None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The tokenizer's fingerprint, the clock and the random state travel along."""
        checkpoint["tokenizer"] = self.trainer.datamodule.tokenizer.fingerprint  # type: ignore[attr-defined]
        if self.clock is not None:
            checkpoint["clock"] = self.clock.state_dict()
            checkpoint["torch_rng"] = torch.get_rng_state()
        if self.watch is not None:
            checkpoint["watch"] = self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the clock and the random numbers of the run."""
        if self.clock is not None:
            self.clock.load_state_dict(checkpoint["clock"])
            torch.set_rng_state(checkpoint["torch_rng"])
        if self.watch is not None and "watch" in checkpoint:
            self.watch.load_state_dict(checkpoint["watch"])
