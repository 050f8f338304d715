"""Swaps in quantized weights for each step of quantization-aware training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

from jepa_lm.model import LanguageModel
from jepa_lm.quantization.formats import Format
from jepa_lm.quantization.qat import FakeQuantizedWeights, QATSchedule, stored_copy

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask

SCORED_AS = "quantized"


class QuantizationAwareTraining(Callback):
    """Swaps quantized weights in before a step's first micro-batch and out before its update.

    Of the rest, the monitor measures on them while they are trained on, and the validation also scores the
    shipped weights as export will store them, once QAT has started.

    Args:
        model: its parameters are swapped. schedule: when. formats: of the parameters, by name.
    """

    def __init__(
        self, model: LanguageModel, schedule: QATSchedule, formats: Mapping[str, Format]
    ) -> None:
        self.schedule, self.formats = schedule, formats
        self.weights = FakeQuantizedWeights(model, schedule.formats(formats))
        self.first_step: int | None = None
        """First step of the run that used the quantized weights."""

    def active(self, task: LanguageModelTask) -> bool:
        """Return whether a step would now use quantized weights."""
        return self.schedule.active(task.clock.progress, task.recipe.lr(task.clock))

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, batch: Any, batch_idx: int
    ) -> None:
        """Swap in if quantization-aware training is active now."""
        if self.active(task):
            if self.first_step is None:
                self.first_step = trainer.global_step + 1
            self.weights.swap_in()

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, optimizer: Any
    ) -> None:
        """Swap out: the update applies to the full-precision weights."""
        self.weights.swap_out()

    def on_validation_start(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Swap out, since a stop within a step comes here; add the quantized model to what is scored."""
        self.weights.swap_out()
        if self.first_step is not None:
            with task.not_training():
                task.scored_beside[SCORED_AS] = stored_copy(task.shipped, self.formats)

    def on_validation_end(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Take the copy out of what is scored."""
        task.scored_beside.pop(SCORED_AS, None)

    def on_train_end(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Swap out if the run ended without a validation."""
        self.weights.swap_out()

    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, exception: BaseException
    ) -> None:
        """Swap out: an interrupted step must not leave quantized weights behind."""
        self.weights.swap_out()

    def state_dict(self) -> dict[str, Any]:
        """Return the step that was the first."""
        return {"first_step": self.first_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.first_step = state_dict["first_step"]
