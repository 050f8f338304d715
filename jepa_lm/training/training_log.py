"""Training figures on their interval, for loggers and the progress bar.

Between log points nothing is read from the device: tensors are kept and read together when they are due.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class TrainingLog:
    """Keeps what the newest step computed until it is written."""

    def __init__(self) -> None:
        self.objective: tuple[float, dict[str, Tensor]] = (0.0, {})
        """Scale and components of the newest step that had the objective, until they are written."""
        self.gradient_norm: Tensor | None = None
        """Of the newest step, before it was clipped."""
        self._due: tuple[Batch, Tensor, Tensor] | None = None
        self._interval = (0, 0.0)

    def begin(self, step: int) -> None:
        """Training starts after this many steps."""
        self._interval = (step, time.perf_counter())

    def pause(self, seconds: float) -> None:
        """Something else took this long; it does not slow the shown speed."""
        step, start = self._interval
        self._interval = (step, start + seconds)

    def keep(self, batch: Batch, ce: Tensor, loss: Tensor) -> None:
        """This step is to be written, when it is done."""
        self._due = (batch, ce.detach(), loss.detach())

    def drop(self) -> None:
        """This step is not to be written after all."""
        self._due = None

    @property
    def due(self) -> bool:
        """A step waits to be written."""
        return self._due is not None

    def write(self, task: LanguageModelTask) -> dict[str, float]:
        """Read the figures and hand them to the loggers; waits for the device."""
        assert self._due is not None
        assert task.clock is not None
        assert task.train_bytes is not None
        assert self.gradient_norm is not None
        (batch, ce, loss), self._due = self._due, None
        (scale, components), self.objective = self.objective, (0.0, {})
        n_bytes = task.train_bytes(batch["inputs"], batch["targets"]).sum()
        read = (ce, loss, self.gradient_norm, n_bytes, *components.values())
        nats, total, norm, counted, *values = torch.stack([x.float() for x in read]).tolist()
        now, step = time.perf_counter(), task.clock.step + 1
        (first, then), self._interval = self._interval, (step, now)
        tokens = (step - first) * task.config["data"]["batch_tokens"]
        figures = {
            "train/loss": total,
            "train/ce": nats,
            "train/bpb": nats * batch["targets"].numel() / math.log(2) / max(counted, 1.0),
            "train/gradient_norm": norm,
            "train/progress": task.clock.progress,
            "train/seconds": task.clock.elapsed,
            "train/tokens_per_second": tokens / (now - then),
        }
        if task.monitor is not None:
            jepa = dict(zip(components, values, strict=True))
            figures |= task.monitor.interval(total, scale, jepa, task.clock)
        # `self.log` keeps results for the whole loop and costs milliseconds; these are finished figures.
        for logger in task.loggers:
            logger.log_metrics(figures, step=step - 1)
        return figures
