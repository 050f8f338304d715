"""The validating half of the LightningModule: scores at an interval and at the end, outside training time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import Batch
from jepa_lm.evaluation.bpb import Score
from jepa_lm.evaluation.tasks import Tasks
from jepa_lm.model import LanguageModel
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.averages import WeightAverages
from jepa_lm.training.training_log import TrainingLog
from jepa_lm.training.validation import ValidationScores, figures_of
from jepa_lm.utils.metrics import METRICS, MetricName
from jepa_lm.utils.provenance import Resumed


class ValidatedModule(LightningModule):
    """Validates a language model with each set of its weights; a subclass trains it."""

    model: LanguageModel
    averages: WeightAverages[LanguageModel]
    clock: ProgressClock

    def __init__(self) -> None:
        super().__init__()
        self.training_log = TrainingLog()
        self.train_bytes: ByteCounter | None = None
        self.val_bytes: ByteCounter | None = None
        self.floor: float | None = None
        """Nats per token of the law that the validation rows come from, where it is known."""
        self.tasks: Tasks | None = None
        """What the data ask beside the loss; None until they are there."""
        self.metric: MetricName | None = None
        """What the run is judged by; None for the loss."""
        self.scored_beside: dict[str, LanguageModel] = {}
        """Models that a validation scores in addition, by name; a callback adds them when it starts."""
        self.scores: dict[str, Score] = {}
        """Scores of the latest validation by weights: `shipped` always; `raw`, `ema`, `swa` if averages are
        kept; `quantized`, the shipped weights as export stores them, once QAT has started."""
        self.resumed: Resumed | None = None
        """Checkpoint and step that the run resumes from; None for a new run."""
        self._scoring: ValidationScores | None = None

    @property
    def shipped(self) -> LanguageModel:
        """The model that is scored and exported."""
        return self.averages.models(self.model)[self.averages.shipped()]

    def setup(self, stage: str) -> None:
        """Get the byte counters of both splits from the data."""
        data = self.trainer.datamodule.data  # type: ignore[attr-defined]
        self.train_bytes = data.split("train").byte_counter().to(self.device)
        self.val_bytes = data.split("val").byte_counter().to(self.device)
        limit, ranks = self.trainer.limit_val_batches, self.trainer.world_size
        self.floor = data.split("val").floor_of_batches(limit, ranks)
        self.tasks = Tasks(data.split("val"), data.split("train"))

    def wait_for_device(self) -> None:
        """Wait until a GPU has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def stop_clock(self) -> None:
        """Stop the clock when the work so far is done, which a GPU may still have to do."""
        self.wait_for_device()
        self.clock.stop()

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Exclude the body from training time and from the reported speed."""
        running = self.clock.running
        self.stop_clock()
        try:
            with self.training_log.pause():
                yield
        finally:
            if running:
                self.clock.start()

    def on_validation_start(self) -> None:
        """Stop the clock, as validation is not training time, and prepare the meters."""
        self._validation = self.not_training()
        self._validation.__enter__()
        assert self.val_bytes is not None
        assert self.tasks is not None
        models = {**self.averages.models(self.model), **self.scored_beside}
        self._scoring = ValidationScores(models, self.val_bytes, self.tasks)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of windows by plain cross entropy with each set of weights."""
        assert self._scoring is not None
        self._scoring.take(batch)

    def on_validation_epoch_end(self) -> None:
        """Sum the scores over ranks, choose the weights that ship, and log the scores."""
        assert self._scoring is not None
        found = self._scoring.scores(self.trainer)
        kept = self.averages.models(self.model)
        self.averages.choose({name: self._badness(found[name]) for name in kept})
        shipped = found[self.averages.shipped()]
        if len(kept) == 1:  # nothing is averaged: the raw weights are those that ship
            del found["raw"]
        self.scores = {"shipped": shipped, **found}
        self._log_validation()

    def _badness(self, score: Score) -> tuple[float, float]:
        """Return what orders scores, the best one first: by the run's metric, then by the loss."""
        if self.metric is None:
            return score.nll, score.nll
        return METRICS[self.metric].worse(score.of(self.metric)), score.nll

    def _log_validation(self) -> None:
        """Pass the scores to callbacks and loggers, unless a run before this one has logged them."""
        step, resumed = self.trainer.global_step, self.resumed
        figures = {"train/seconds": self.clock.elapsed, **figures_of(self.scores, step, self.floor)}
        self.log_dict(figures, logger=False)
        if resumed is not None and resumed.validated and resumed.step == step:
            return
        for logger in self.loggers:
            logger.log_metrics(figures, step=max(step - 1, 0))
            logger.save()  # so that a kill before the next checkpoint does not lose them

    def on_validation_end(self) -> None:
        """Start the clock again."""
        self._scoring = None
        self._validation.__exit__(None, None, None)
