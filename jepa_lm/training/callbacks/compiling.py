"""Excludes compilation from training time, and says when it begins and how long it took."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from torch._dynamo.callback import callback_handler

from jepa_lm.training.auxiliary import active_of
from jepa_lm.utils.output import tell

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class ClockStopsForCompiler(Callback):
    """Stops the progress clock while PyTorch compiles, at the start and when a phase begins later.

    The clock goes on when the step is over that compiled something: its first run loads the kernels and
    tries out several variants of some, which takes seconds on a GPU. There, the first step of each phase is
    not counted even if PyTorch compiles nothing, as Triton builds its kernels in it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds spent on compiling so far."""
        self._remove = ExitStack()
        self._paused = ExitStack()
        self._since: float | None = None
        """When the present pause began."""
        self._stood = 0.0
        self._in_step = False
        self._begun: set[frozenset[str]] = set()
        """Phases that a GPU has begun."""
        self._phases: set[frozenset[str]] = set()
        """Phases that have been compiled, each as the keys of its objectives."""
        self._told: float | None = None
        """How long the clock had stood still when a phase was said to be compiled; None between phases."""

    @property
    def stood(self) -> float:
        """Seconds for which the clock has stood still so far."""
        return self._stood + (0.0 if self._since is None else time.perf_counter() - self._since)

    def on_train_start(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Register callbacks with the compiler."""

        def begins(args: Any) -> None:
            self._began = time.perf_counter()
            if trainer.is_global_zero:
                self._tell_of(task)
            self._pause(task)

        def ends(args: Any) -> None:
            self.seconds += time.perf_counter() - self._began
            if not self._in_step:
                self._go_on()

        callback_handler.register_start_callback(begins)
        callback_handler.register_end_callback(ends)
        self._remove.callback(callback_handler.remove_start_callback, begins)
        self._remove.callback(callback_handler.remove_end_callback, ends)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, batch: Any, batch_idx: int
    ) -> None:
        """Note that a step is under way, and stop the clock in a GPU's first one of a phase."""
        self._in_step = True
        if task.device.type != "cuda":
            return
        phase = active_of(
            task.auxiliaries, task.clock
        )  # `task.active` is still that of the last step
        if phase not in self._begun:
            self._begun.add(phase)
            self._pause(task)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on after a step that compiled something, once the device has finished it."""
        if not task.ends_step(batch_idx):
            return
        self._in_step = False
        if self._since is not None:
            task.wait_for_device()
            self._go_on()
        if self._told is not None:
            tell(f"compiled in {self.stood - self._told:.0f} s")
            self._told = None

    def _tell_of(self, task: LanguageModelTask) -> None:
        """Say that a phase is being compiled, once, however many parts are compiled for it."""
        if task.active not in self._phases:
            self._phases.add(task.active)
            which = "with" if task.active else "without"
            phase = "" if not task.auxiliaries else f" {which} the objective"
            tell(f"compiling the training step{phase} ...")
            self._told = self.stood

    def _pause(self, task: LanguageModelTask) -> None:
        """Stop the clock, unless it stands still already."""
        if self._since is None:
            self._since = time.perf_counter()
            self._paused.enter_context(task.not_training())
            if self._in_step:
                task.training_log.untimed += 1

    def _go_on(self) -> None:
        self._stood, self._since = self.stood, None
        self._paused.close()

    def on_train_end(self, trainer: Trainer, task: LanguageModelTask) -> None:  # type: ignore[override]
        """Remove the callbacks."""
        self._remove.close()
        self._paused.close()

    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, task: LanguageModelTask, exception: BaseException
    ) -> None:
        """Remove the callbacks."""
        self._remove.close()
        self._paused.close()
