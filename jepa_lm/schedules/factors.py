"""Schedules: functions of the progress clock that drive learning rates, momentum and loss weights.

A schedule maps the clock to a number. For learning rates and loss weights this number is a factor on a
value set elsewhere in the config. `over` chooses what fractions refer to: the `budget` (whichever limit is
reached first, so that no phase is missed), its `steps`, or its `time`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

from jepa_lm.schedules.clock import Over, ProgressClock
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Decay, Positive, Seed, Share, Whole, checked


class Schedule(Protocol):
    """A value that follows the clock."""

    def __call__(self, clock: ProgressClock) -> float:
        """Return the current value."""
        ...

    def phases(self) -> list[dict[str, Any]]:
        """Return the schedule phase by phase, in plain values for `describe=true`."""
        ...


class Constant:
    """The constant `value`."""

    def __init__(self, *, value: float) -> None:
        self.value = value

    def __call__(self, clock: ProgressClock) -> float:
        return self.value

    def phases(self) -> list[dict[str, Any]]:
        return [{"constant": self.value}]


class Warmdown:
    """1, then linear decay to `end` over the last part of the budget.

    The length of the decay is a `fraction` of the budget or a number of `steps`. Under a wall-clock budget,
    steps are converted to time at the pace measured so far, as in the challenge's scripts.
    """

    @checked
    def __init__(
        self, *, fraction: Share | None, steps: Whole | None, end: float, over: Over = "budget"
    ) -> None:
        if (fraction is None) == (steps is None):
            raise UserError(
                f"fraction={fraction}, steps={steps}: set one of them, and leave the other null"
            )
        self.fraction, self.steps, self.end, self.over = fraction, steps, end, over

    def __call__(self, clock: ProgressClock) -> float:
        length = self.fraction
        if length is None:
            length = clock.share_of(self.steps or 0, self.over)
        left = 1.0 - clock.share_done(self.over)
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

    @checked
    def __init__(self, *, start: float, end: float, steps: Whole) -> None:
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, clock: ProgressClock) -> float:
        done = min(1.0, clock.step / self.steps) if self.steps else 1.0
        return self.start + (self.end - self.start) * done

    def phases(self) -> list[dict[str, Any]]:
        return [{"linear": [self.start, self.end], "steps": self.steps}, {"constant": self.end}]


class Ramp:
    """min(step / steps, 1): from 0 at the first step to 1 after `steps` optimizer steps."""

    @checked
    def __init__(self, *, steps: Count) -> None:
        self.steps = steps

    def __call__(self, clock: ProgressClock) -> float:
        return min(1.0, clock.step / self.steps)

    def phases(self) -> list[dict[str, Any]]:
        return [{"linear": [0.0, 1.0], "steps": self.steps}, {"constant": 1.0}]


class After:
    """0 for the first `steps` optimizer steps, then 1."""

    @checked
    def __init__(self, *, steps: Whole) -> None:
        self.steps = steps

    def __call__(self, clock: ProgressClock) -> float:
        return float(clock.step >= self.steps)

    def phases(self) -> list[dict[str, Any]]:
        return [{"constant": 0.0, "steps": self.steps}, {"constant": 1.0}]


class Phased:
    """Linear interpolation between `points` [progress, value]; two points at the same progress are a jump.

    The first point's value holds before it, the last point's value after it. At a jump the later point
    counts.
    """

    @checked
    def __init__(self, *, points: Sequence[Sequence[float]], over: Over = "budget") -> None:
        where = [point[0] for point in points]
        ordered = where == sorted(where) and all(0 <= x <= 1 for x in where)
        if not points or any(len(p) != 2 for p in points) or not ordered:
            raise UserError(
                f"points={[list(p) for p in points]}: needs pairs [progress, value] with "
                "progress rising from 0 to 1"
            )
        self.points = [(float(x), float(y)) for x, y in points]
        self.over = over

    def __call__(self, clock: ProgressClock) -> float:
        now = clock.share_done(self.over)
        value = self.points[0][1]
        for (x0, y0), (x1, y1) in zip(self.points, self.points[1:], strict=False):
            if now >= x1:
                value = y1
            elif now >= x0:
                return y0 + (y1 - y0) * (now - x0) / (x1 - x0)
        return value

    def phases(self) -> list[dict[str, Any]]:
        return [{"progress": x, "value": y} for x, y in self.points]


class Linear:
    """Linear from `start` to `end` over the whole budget."""

    @checked
    def __init__(self, *, start: float, end: float, over: Over = "budget") -> None:
        self.start, self.end, self.over = start, end, over

    def __call__(self, clock: ProgressClock) -> float:
        return self.start + (self.end - self.start) * clock.share_done(self.over)

    def phases(self) -> list[dict[str, Any]]:
        return [{"linear": [self.start, self.end], "until": 1.0}]


class LogAnneal:
    """Geometric from `start` to `end` over the whole budget: a constant factor per unit of progress."""

    @checked
    def __init__(self, *, start: Positive, end: Positive, over: Over = "budget") -> None:
        self.start, self.end, self.over = start, end, over

    def __call__(self, clock: ProgressClock) -> float:
        return float(self.start * (self.end / self.start) ** clock.share_done(self.over))

    def phases(self) -> list[dict[str, Any]]:
        return [{"logarithmic": [self.start, self.end], "until": 1.0}]


class EveryNth:
    """The value of another `schedule` on every `n`-th optimizer step (0, n, 2n, ...), 0 on all others."""

    @checked
    def __init__(self, *, n: Count, schedule: Schedule) -> None:
        self.n, self.schedule = n, schedule

    def __call__(self, clock: ProgressClock) -> float:
        return 0.0 if clock.step % self.n else self.schedule(clock)

    def phases(self) -> list[dict[str, Any]]:
        return [{"every_nth_step": self.n}, *self.schedule.phases()]


class RandomSteps:
    """The value of another `schedule` on random steps, and 0 on a share `dropped` of them ("loss dropout").

    All ranks drop the same steps, and a resumed run those it would have dropped. Source: 2509.14252.
    """

    @checked
    def __init__(self, *, dropped: Decay, seed: Seed, schedule: Schedule) -> None:
        self.dropped, self.seed, self.schedule = dropped, seed, schedule

    def __call__(self, clock: ProgressClock) -> float:
        drawn = Random(f"{self.seed}/{clock.step}").random()
        return 0.0 if drawn < self.dropped else self.schedule(clock)

    def phases(self) -> list[dict[str, Any]]:
        return [{"share_of_steps": 1 - self.dropped}, *self.schedule.phases()]
