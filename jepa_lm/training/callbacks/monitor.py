"""Measures objectives at an interval."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

from jepa_lm.data.stream import Batch
from jepa_lm.objective.monitor import Monitor
from jepa_lm.optim.first_steps import first_steps
from jepa_lm.training.callbacks.qat import QuantizationAwareTraining
from jepa_lm.utils.errors import warn

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


TOKENS = 8192
"""A measurement reads at most so many tokens of a micro-batch (but two rows at least): its two backward
passes through a whole one would need more memory than training itself."""


class _Measure(Callback):
    """Runs a monitor after a step, when the step's graph has been freed.

    It is a callback because Lightning calls callbacks before the module's own hook and saves checkpoints
    last: the checkpoint of a step then includes the measurement made after it.

    Args:
        monitor: of an objective. qat: measure on quantized weights while they are trained on.
    """

    def __init__(self, monitor: Monitor, qat: QuantizationAwareTraining | None) -> None:
        self.monitor, self.qat = monitor, qat

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure if due, log the figures, and warn once of each problem."""
        step, monitor = trainer.global_step, self.monitor
        if not monitor.due(step) or not task.ends_step(batch_idx):
            return
        seen = nullcontext()
        if self.qat is not None and self.qat.active(task):
            seen = self.qat.weights.swapped()  # type: ignore[assignment]
        rows = max(2, TOKENS // batch["inputs"].shape[1])
        batch = {name: values[:rows] for name, values in batch.items()}
        with task.not_training(), trainer.precision_plugin.forward_context(), seen:
            warnings = monitor.measure(
                task.model,
                batch,
                task.step_context(batch_idx),
                step=step,
                ce_weight=task.ce_weight(),
                first_steps=partial(first_steps, trainer.optimizers[0]),  # type: ignore[arg-type]
            )
        figures = {
            f"{monitor.objective.node}/{name}": value for name, value in monitor.figures.items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step - 1)
        for text in warnings if trainer.is_global_zero else ():
            warn(text)

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.monitor.load_state_dict(state_dict)


class MeasureObjective(_Measure):
    """Measures the latent objective. The names of both classes are keys in checkpoints."""


class MeasureTokens(_Measure):
    """Measures the token objective."""
