"""Training figures for loggers and the progress bar.

Nothing is read from the device between log points: tensors are kept and read together when due.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import Batch
from jepa_lm.objective.auxiliary_loss import LOSS, AuxiliaryLoss
from jepa_lm.schedules.clock import ProgressClock


class TrainingLog:
    """Keeps the figures of the latest step until they are written."""

    def __init__(self) -> None:
        self._objectives: dict[str, tuple[float, dict[str, Tensor]]] = {}
        self.gradient_norm: Tensor | None = None
        """Gradient norm of the latest step, before clipping."""
        self._due: tuple[Batch, Tensor, Tensor] | None = None
        self._interval = (0, 0.0)
        self._paused, self._pauses, self._since = 0.0, 0, 0.0
        self.untimed = 0
        """Steps of this interval that do not count as training time."""
        self.begun = False
        """True once the run's own steps have begun."""

    def begin(self, step: int) -> None:
        """Start the first interval, after this many steps."""
        self.begun = True
        self._interval, self.untimed = (step, self._now()), 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the body from the reported speed; pauses may lie within each other."""
        if not self._pauses:
            self._since = time.perf_counter()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._paused += time.perf_counter() - self._since

    def _now(self) -> float:
        """Return the time without pauses."""
        return (self._since if self._pauses else time.perf_counter()) - self._paused

    def keep(self, batch: Batch, ce: Tensor, loss: Tensor) -> None:
        """Keep the figures of this step, to be written when the step is done."""
        self._due = (batch, ce.detach(), loss.detach())

    def keep_objective(
        self, key: str, scale: float, loss: Tensor, components: dict[str, Tensor]
    ) -> None:
        """Keep the figures of a step with the objective until a step is written: not every step has it."""
        figures = {name: component.detach() for name, component in components.items()}
        self._objectives[key] = scale, {LOSS: loss.detach(), **figures}

    def drop(self) -> None:
        """Discard the kept figures of this step."""
        self._due = None

    @property
    def due(self) -> bool:
        """True if a step is waiting to be written."""
        return self._due is not None

    def read(
        self,
        clock: ProgressClock,
        objectives: Mapping[str, AuxiliaryLoss],
        byte_counter: ByteCounter,
        tokens_per_step: int,
    ) -> dict[str, float]:
        """Return the figures of the kept step, by metric; waits for the device.

        Args:
            clock: before it advances from that step. byte_counter: of the training split.
        """
        assert self._due is not None
        assert self.gradient_norm is not None
        (batch, ce, loss), self._due = self._due, None
        kept = [self._objectives.get(key, (0.0, {})) for key in objectives]
        self._objectives = {}
        components = [loss for _, losses in kept for loss in losses.values()]
        n_bytes = byte_counter(batch["inputs"], batch["targets"]).sum()
        read = (ce, loss, self.gradient_norm, n_bytes, *components)
        nats, total, norm, counted, *values = torch.stack([x.float() for x in read]).tolist()
        now, step = self._now(), clock.step + 1
        (first, then), self._interval = self._interval, (step, now)
        timed, self.untimed = step - first - self.untimed, 0
        speed = timed * tokens_per_step / (now - then) if timed else 0.0
        figures = {
            "train/loss": total,
            "train/ce": nats,
            **_bits_per_byte(nats * batch["targets"].numel(), counted),
            "train/gradient_norm": norm,
            "train/progress": clock.progress,
            "train/seconds": clock.elapsed,
            "train/tokens_per_second": speed,
        }
        left = iter(values)
        for (key, objective), (scale, losses) in zip(objectives.items(), kept, strict=True):
            known = {name: next(left) for name in losses}
            mine = _figures(objective, total, scale, known, clock)
            figures |= {f"{key}/{name}": value for name, value in mine.items()}
        return figures


def _figures(
    objective: AuxiliaryLoss,
    total: float,
    scale: float,
    components: dict[str, float],
    clock: ProgressClock,
) -> dict[str, float]:
    """Return what is logged of an objective at an interval: losses and their shares of the total.

    Args:
        total: the whole loss. components: `loss` and the objective's parts at the latest step with the
            objective; empty if there was none. scale: the weight of the objective at that step.
    """
    weights = objective.weights(clock)
    figures = {"weight": objective.scale(clock), **components}
    for name, value in components.items():
        key = "share" if name == LOSS else f"{name}_share"
        figures[key] = scale * weights.get(name, 1.0) * value / total if total else 0.0
    return figures


def _bits_per_byte(nats: float, n_bytes: float) -> dict[str, float]:
    """Return the metric, or nothing if the tokens stand for no bytes."""
    return {"train/bpb": nats / math.log(2) / n_bytes} if n_bytes else {}
