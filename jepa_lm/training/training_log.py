"""Training figures for loggers and the progress bar.

Nothing is read from the device between log points: tensors are kept and read together when due.
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
    """Keeps the figures of the latest step until they are written."""

    def __init__(self) -> None:
        self.objective: tuple[float, dict[str, Tensor]] = (0.0, {})
        """Scale and components of the latest step with the objective, until they are written."""
        self.gradient_norm: Tensor | None = None
        """Gradient norm of the latest step, before clipping."""
        self._due: tuple[Batch, Tensor, Tensor] | None = None
        self._interval = (0, 0.0)

    def begin(self, step: int) -> None:
        """Start the first interval, after this many steps."""
        self._interval = (step, time.perf_counter())

    def pause(self, seconds: float) -> None:
        """Exclude this many seconds from the reported speed."""
        step, start = self._interval
        self._interval = (step, start + seconds)

    def keep(self, batch: Batch, ce: Tensor, loss: Tensor) -> None:
        """Keep the figures of this step, to be written when the step is done."""
        self._due = (batch, ce.detach(), loss.detach())

    def drop(self) -> None:
        """Discard the kept figures of this step."""
        self._due = None

    @property
    def due(self) -> bool:
        """True if a step is waiting to be written."""
        return self._due is not None

    def write(self, task: LanguageModelTask) -> dict[str, float]:
        """Read the figures, pass them to the loggers and return them; waits for the device."""
        assert self._due is not None
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
        # `self.log` would keep results for the whole loop, which costs milliseconds.
        for logger in task.loggers:
            logger.log_metrics(figures, step=step - 1)
        return figures
