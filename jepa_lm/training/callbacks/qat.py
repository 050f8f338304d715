"""Swaps in quantized weights for each step of quantization-aware training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class QuantizationAwareTraining(Callback):
    """Swaps quantized weights in before a step's first micro-batch and out before its update.

    Nothing else ever sees the quantized weights.
    """

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, batch: Any, batch_idx: int
    ) -> None:
        """Swap in if quantization-aware training is active now."""
        if task.stored is not None and task.trains_stored():
            if task.stored.first_step is None:
                task.stored.first_step = trainer.global_step + 1
            task.stored.swap_in()

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, optimizer: Any
    ) -> None:
        """Swap out: the update applies to the full-precision weights."""
        if task.stored is not None:
            task.stored.swap_out()

    def on_validation_start(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Swap out: a stop between micro-batches validates before their step is done."""
        if task.stored is not None:
            task.stored.swap_out()

    def on_train_end(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Swap out if the run ended without a validation."""
        if task.stored is not None:
            task.stored.swap_out()

    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, exception: BaseException
    ) -> None:
        """Swap out: an interrupted step must not leave quantized weights behind."""
        if task.stored is not None:
            task.stored.swap_out()
