"""Excludes compilation from training time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from torch._dynamo.callback import callback_handler

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class ClockStopsForCompiler(Callback):
    """Stops the progress clock while PyTorch compiles, at the start and when a phase begins later."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds spent on compiling so far."""
        self._remove = ExitStack()

    def on_train_start(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Register callbacks with the compiler."""
        paused = ExitStack()

        def begins(args: Any) -> None:
            self._began = time.perf_counter()
            paused.enter_context(task.not_training())

        def ends(args: Any) -> None:
            paused.close()
            self.seconds += time.perf_counter() - self._began

        callback_handler.register_start_callback(begins)
        callback_handler.register_end_callback(ends)
        self._remove.callback(callback_handler.remove_start_callback, begins)
        self._remove.callback(callback_handler.remove_end_callback, ends)

    def on_train_end(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Remove the callbacks."""
        self._remove.close()

    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, exception: BaseException
    ) -> None:
        """Remove the callbacks."""
        self._remove.close()
