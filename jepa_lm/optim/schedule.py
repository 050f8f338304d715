"""Schedules: functions of the progress clock that drive learning rates and momentum.

A schedule maps a clock to a number. Those of the learning rate are factors on each group's own lr.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from jepa_lm.errors import UserError
from jepa_lm.optim.clock import ProgressClock


class Schedule(Protocol):
    """A value that follows the clock."""

    def __call__(self, clock: ProgressClock) -> float:
        """The value now."""
        ...

    def phases(self) -> list[dict[str, Any]]:
        """What the schedule does, phase by phase, in plain values for `describe=true`."""
        ...


class Constant:
    """Always the same value."""

    def __init__(self, *, value: float) -> None:
        self.value = value

    def __call__(self, clock: ProgressClock) -> float:
        return self.value

    def phases(self) -> list[dict[str, Any]]:
        return [{"constant": self.value}]


class Warmdown:
    """1, then linearly down to `end` over the last part of the budget.

    The part is a `fraction` of the budget, or a number of `steps`: under a wall-clock budget these
    count at the pace measured so far, as the challenge's scripts convert them.
    """

    def __init__(self, *, fraction: float | None, steps: int | None, end: float) -> None:
        if (fraction is None) == (steps is None):
            raise UserError(
                f"optimizer.schedule.lr: set fraction or steps, not both (fraction={fraction}, "
                f"steps={steps})"
            )
        if fraction is not None and not 0 <= fraction <= 1:
            raise UserError(f"optimizer.schedule.lr.fraction={fraction}: must lie in 0 to 1")
        self.fraction, self.steps, self.end = fraction, steps, end

    def __call__(self, clock: ProgressClock) -> float:
        length = self.fraction if self.fraction is not None else clock.share_of(self.steps or 0)
        left = 1.0 - clock.progress
        if left >= length:
            return 1.0
        return self.end + (1.0 - self.end) * left / length

    def phases(self) -> list[dict[str, Any]]:
        if self.fraction is not None:
            start: float | str = round(1.0 - self.fraction, 6)
        else:
            start = f"the last {self.steps} steps"
        return [{"constant": 1.0, "until": start}, {"linear_to": self.end, "until": 1.0}]


class Warmup:
    """Linear from `start` to `end` over the first `steps` optimizer steps, then `end`."""

    def __init__(self, *, start: float, end: float, steps: int) -> None:
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, clock: ProgressClock) -> float:
        done = min(1.0, clock.step / self.steps) if self.steps else 1.0
        return self.start + (self.end - self.start) * done

    def phases(self) -> list[dict[str, Any]]:
        return [{"linear": [self.start, self.end], "steps": self.steps}, {"constant": self.end}]


class ClockScheduler(LRScheduler):
    """Writes the scheduled learning rate, and Muon's momentum, into the groups after each step."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        clock: ProgressClock,
        lr: Schedule,
        muon_momentum: Schedule | None,
    ) -> None:
        self.clock, self.lr, self.muon_momentum = clock, lr, muon_momentum
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Each group's learning rate at this moment."""
        factor = self.lr(self.clock)
        if self.muon_momentum is not None:
            for group in self.optimizer.param_groups:
                if group["algorithm"] == "muon":
                    group["momentum"] = self.muon_momentum(self.clock)
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the clock keeps its own state."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}
