"""Progress bar of a run: share of the budget done, loss, bits per byte, tokens per second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from jepa_lm.utils.console import Screen
from jepa_lm.utils.metrics import LOSSES, METRICS
from jepa_lm.utils.output import suppressed

PLAIN_LINES = 10
"""Approximate number of lines that a run prints instead of a bar if there is no terminal."""
MOVES_EVERY = 1.0
"""Seconds between two moves of the bar."""

P = ParamSpec("P")


def shown(method: Callable[P, None]) -> Callable[P, None]:
    """Wrap a method so that a closed terminal or a full disk does not stop training."""

    @wraps(method)
    def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        with suppressed(sys.stderr):
            method(*args, **kwargs)

    return tried


class TrainingBar(ProgressBar):
    """Progress bar that follows the progress clock, so it is right for step budgets and time budgets.

    It moves every second. Losses are read from the device only at log points, and shown until the next one;
    steps and seconds are known on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self._moved = 0.0
        self._console = Screen(stderr=True)
        self._bar: Progress | None = None
        self._shown = -1
        self._lines = -1
        self._enabled = True

    def disable(self) -> None:
        """Turn the bar off; Lightning calls this on ranks other than the first."""
        self._enabled = False

    def enable(self) -> None:
        """Turn the bar on again."""
        self._enabled = True

    @shown
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the bar."""
        self._shown = trainer.global_step
        if not (self._enabled and self._console.is_terminal):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("step {task.fields[step]}{task.fields[figures]}"),
            # Whole in 80 columns, too, where something has to be cut.
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TimeRemainingColumn(table_column=Column(min_width=7)),
            console=self._console,
            refresh_per_second=1 / MOVES_EVERY,  # 10 times a second would cost 1 % of a core
        )
        step, done = trainer.global_step, pl_module.clock.progress
        self._task = self._bar.add_task(
            "training", total=1.0, completed=done, step=step, figures=""
        )
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show new figures if there are any; otherwise move the bar, once a second."""
        step = trainer.global_step
        if step == self._shown or step % trainer.log_every_n_steps or not pl_module.live:  # type: ignore[attr-defined]
            if self._bar is not None and time.monotonic() - self._moved >= MOVES_EVERY:
                self._move(step, pl_module.clock.progress)
            return
        self._shown = step
        live = pl_module.live
        bpb = f"  bpb {live['train/bpb']:.3f}" if "train/bpb" in live else ""
        speed = f"{live['train/tokens_per_second']:,.0f} tokens/s"
        figures = f"  loss {live['train/ce']:.3f}{bpb}  {speed}"
        self._show(step, live["train/progress"], figures)

    @shown
    def _move(self, step: int, progress: float, **figures: Any) -> None:
        """Move the open bar; its own thread draws it, so that it goes on during a long step, too."""
        assert self._bar is not None
        self._moved = time.monotonic()
        self._bar.update(self._task, completed=progress, step=step, **figures)

    @shown
    def _show(self, step: int, progress: float, figures: str) -> None:
        if self._bar is not None:
            self._move(step, progress, figures=figures)
        elif self._enabled:
            line = int(progress * PLAIN_LINES)
            if line > self._lines:
                self._lines = line
                self._console.print(f"training {progress:4.0%}  step {step}{figures}")

    @shown
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show that the run is validating."""
        if self._bar is not None:
            self._bar.update(self._task, description="validating", refresh=True)

    @shown
    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the score."""
        if self._bar is not None:
            self._bar.update(self._task, description="training", refresh=True)
        if self._enabled and not trainer.sanity_checking and pl_module.scores:
            score, metric = pl_module.scores["shipped"], pl_module.metric
            told = score.in_words()
            if metric not in (None, *LOSSES):
                told += f", {METRICS[metric].says} {score.of(metric):.4f}"
            self._console.print(f"validation at step {trainer.global_step}: {told}")

    @shown
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Set the bar to the clock's progress and close it."""
        if self._bar is not None:
            self._move(trainer.global_step, pl_module.clock.progress)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that it does not overwrite the error message."""
        self._close()

    @shown
    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
