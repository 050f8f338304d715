"""The single clock of a run: progress in [0, 1] = max(step / max_steps, elapsed / max_time).

Learning rates, momentum, loss weights and the end of training all read it, so that no phase is missed when
a wall-clock budget ends a run early. The clock is stopped during validation and measurements.

A schedule may follow only one of the two limits: #832 decays its learning rate by the wall clock while its
phases follow the steps.

All ranks agree on the clock: every `exchange_every` steps they take rank 0's elapsed time, and between
exchanges they extrapolate at the same pace. So all ranks stop after the same step without a collective per
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Positive, checked

Over = Literal["budget", "steps", "time"]
"""Limits that a schedule may follow: whichever is reached first (budget), or only that one."""


class ProgressClock:
    """Progress of a run, in steps and seconds of training.

    Args:
        max_steps: optimizer steps, or None. max_time: seconds of training, or None.
        now: seconds, monotonic; tests pass a simulated one.
        exchange: maps a float to rank 0's value; None for a single process.
        exchange_every: steps between exchanges.

    Raises:
        UserError: neither limit is set, or one is not positive.
    """

    @checked
    def __init__(
        self,
        *,
        max_steps: Count | None,
        max_time: Positive | None,
        now: Callable[[], float] = time.monotonic,
        exchange: Callable[[float], float] | None = None,
        exchange_every: int = 10,
    ) -> None:
        if max_steps is None and max_time is None:
            raise UserError(
                "trainer.max_steps and trainer.max_time are both unset; set one, or the run never ends"
            )
        self.max_steps, self.max_time = max_steps, max_time
        self.exchange, self.exchange_every = exchange, exchange_every
        self.step = 0
        self._now = now
        self._before = 0.0
        """Seconds counted before the last start."""
        self._started: float | None = None
        self._agreed = (0, 0.0)
        """Step and elapsed seconds at the last exchange."""
        self._pace = 0.0
        """Seconds per step between the last two exchanges."""

    def start(self) -> None:
        """Start the clock if it is stopped."""
        if self._started is None:
            self._started = self._now()

    def stop(self) -> None:
        """Stop the clock if it is running."""
        if self._started is not None:
            self._before += self._now() - self._started
            self._started = None

    @property
    def running(self) -> bool:
        """True while the clock is running."""
        return self._started is not None

    def advance(self) -> None:
        """Count one optimizer step, and exchange the time with the other ranks if it is due."""
        self.step += 1
        if self.exchange is not None and self._exchanges():
            (step, before), now = self._agreed, self.exchange(self._local())
            self._agreed, self._pace = (self.step, now), (now - before) / (self.step - step)

    def _exchanges(self) -> bool:
        """Return whether this step exchanges; often at first, because early steps have an unusual pace."""
        begins = self.step < self.exchange_every and self.step & (self.step - 1) == 0
        return begins or self.step % self.exchange_every == 0

    def _local(self) -> float:
        running = 0.0 if self._started is None else self._now() - self._started
        return self._before + running

    @property
    def elapsed(self) -> float:
        """Seconds of training so far; with several ranks, the time they agree on."""
        if self.exchange is None:
            return self._local()
        step, seconds = self._agreed
        return seconds + (self.step - step) * self._pace

    @property
    def progress(self) -> float:
        """Fraction of the budget that is used, in [0, 1]."""
        return self.share_done("budget")

    def share_done(self, over: str) -> float:
        """Return the used fraction, in [0, 1], of one of `Over`; an unset limit is replaced by the other."""
        shares = {}
        if self.max_steps is not None:
            shares["steps"] = self.step / self.max_steps
        if self.max_time is not None:
            shares["time"] = self.elapsed / self.max_time
        return min(1.0, shares[over] if over in shares else max(shares.values()))

    @property
    def done(self) -> bool:
        """True once the budget is used up."""
        return self.progress >= 1.0

    def share_of(self, steps: int, over: str = "budget") -> float:
        """Return the fraction of one of `Over` that this many steps take at the pace so far."""
        shares = {}
        if self.max_steps is not None:
            shares["steps"] = steps / self.max_steps
        if self.max_time is not None and self.step:
            shares["time"] = steps * self.elapsed / self.step / self.max_time
        return shares[over] if over in shares else max(shares.values(), default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"step": self.step, "elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of an earlier run."""
        self.step, self._before = state["step"], state["elapsed"]
        self._agreed = (self.step, self._before)
        self._pace = self._before / self.step if self.step else 0.0
