"""Times the steps of a training run, and sees what makes the host wait and what is compiled anew."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from itertools import pairwise
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from torch._dynamo.utils import counters

CALLERS = 5
"""Lines of the stack that are reported for a wait."""
PARTS = ("forward", "backward", "update")
"""Parts of a step; `update` is clipping, the optimizer and averages."""


class Watch(Callback):
    """Times each step of the latest run, by the device's own clock on a GPU.

    Args:
        first, last: steps, counted from 1, in which calls are counted that make the host wait for the device.
    """

    latest: ClassVar[Watch]

    def __init__(self, first: int, last: int) -> None:
        type(self).latest = self
        self.watched = range(first, last + 1)
        self.waits: Counter[str] = Counter()
        """Waits in the watched steps, by the lines that caused them, innermost first."""
        self.graphs: dict[int, int] = {}
        """Number of graphs that were compiled in a step, for steps that compiled any."""
        self._marks: list[Any] = []
        """Marks at the start, and after forward, backward and update of each step."""
        self._cuda = torch.cuda.is_available()

    def on_train_start(self, *args: Any) -> None:
        """Forget what the compiler did before."""
        counters.clear()
        self._compiled = 0
        self._marks.clear()

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """Mark the start of the first step, after ghost steps, and begin to count waits."""
        if trainer.global_step == 0:
            self._marks.clear()
            self._mark()
        if self._cuda and trainer.global_step + 1 in self.watched:
            self._listening = warnings.catch_warnings()
            self._listening.__enter__()
            warnings.simplefilter("always")
            warnings.showwarning = self._heard
            torch.cuda.set_sync_debug_mode("warn")

    def on_before_backward(self, *args: Any) -> None:
        """Mark the end of the forward pass."""
        self._mark()

    def on_after_backward(self, *args: Any) -> None:
        """Mark the end of the backward pass."""
        self._mark()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Mark the end of a step."""
        if self._cuda and trainer.global_step in self.watched:
            torch.cuda.set_sync_debug_mode("default")
            self._listening.__exit__(None, None, None)
        self._mark()
        compiled = counters["stats"].get("unique_graphs", 0)
        if compiled != self._compiled:
            self.graphs[trainer.global_step] = compiled - self._compiled
            self._compiled = compiled

    def _heard(self, message: Any, *args: Any, **settings: Any) -> None:
        if "called a synchronizing" in str(message):
            calls = [f for f in traceback.extract_stack() if f.filename != __file__][-CALLERS:]
            names = (f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.line}" for f in calls)
            self.waits[" < ".join(reversed(list(names)))] += 1

    def _mark(self) -> None:
        if self._cuda:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Return the time of each step."""
        return self._between(self._marks[:: len(PARTS)])

    def parts(self) -> dict[str, list[float]]:
        """Return the time of each part of each step."""
        times = self._between(self._marks)
        return {part: times[i :: len(PARTS)] for i, part in enumerate(PARTS)}

    def _between(self, marks: list[Any]) -> list[float]:
        pairs = list(pairwise(marks))
        if self._cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in pairs]
        return [1000 * (b - a) for a, b in pairs]
