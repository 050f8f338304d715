"""Warns when a run begins to read its training split again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer

from jepa_lm.data.stream import Batch
from jepa_lm.utils.errors import warn

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class WarnOfSecondPass(Callback):
    """Warns once, on the first rank, unless the budget already showed it (`Passes.will_repeat`)."""

    def __init__(self) -> None:
        self._text = ""
        self._after: float = float("inf")
        """Number of steps after which the warning is due."""

    def on_train_start(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Find out after which step the data repeats."""
        data = trainer.datamodule.data  # type: ignore[attr-defined]
        passes = data.passes(trainer.world_size, trainer.accumulate_grad_batches)
        told = passes.will_repeat(task.clock.max_steps, task.clock.max_time)
        if trainer.is_global_zero and not told:
            self._after, self._text = passes.first, passes.warning()

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, batch: Batch, batch_idx: int
    ) -> None:
        """Warn in the first step that repeats data, or in the first step of a run resumed after it."""
        if trainer.global_step >= self._after:
            self._after = float("inf")
            warn(self._text)
