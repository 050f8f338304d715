"""Measures the objective at an interval."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

from jepa_lm.data.stream import Batch
from jepa_lm.utils.errors import warn

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class MeasureObjective(Callback):
    """Runs the task's monitor after a step, when the step's graph has been freed.

    It is a callback because Lightning calls callbacks before the module's own hook and saves checkpoints
    last: the checkpoint of a step then includes the measurement made after it.
    """

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure if due, log the figures, and warn once of each problem."""
        step, watch = trainer.global_step, task.monitor
        if watch is None or not watch.due(step) or not task.ends_step(batch_idx):
            return
        seen = nullcontext()
        if task.stored is not None and task.trains_stored():
            seen = task.stored.swapped()  # type: ignore[assignment]
        with task.not_training(), trainer.precision_plugin.forward_context(), seen:
            warnings = watch.measure(
                task.model,
                batch,
                task.step_context(batch_idx),
                step=step,
                ce_weight=task.config["ce_weight"],
            )
        figures = {f"jepa/{name}": value for name, value in watch.figures.items()}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step - 1)
        for text in warnings if trainer.is_global_zero else ():
            warn(text)
