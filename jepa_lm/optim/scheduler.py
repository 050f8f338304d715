"""Scheduler of learning rates and of Muon's momentum."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import Schedule


class ClockScheduler(LRScheduler):
    """Scheduler that writes learning rates and Muon's momentum into the groups after each step."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        clock: ProgressClock,
        lr: Schedule,
        muon_momentum: Schedule | None,
    ) -> None:
        self.clock, self.lr, self.muon_momentum = clock, lr, muon_momentum
        self.factor = 1.0
        """Latest factor on the learning rates."""
        self._momentum: float | None = None
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the current learning rate of each group."""
        self.factor = self.lr(self.clock)
        if self.muon_momentum is not None:
            self._momentum = self.muon_momentum(self.clock)
        return self._written()

    def _written(self) -> list[float]:
        """Write the momentum into Muon's groups; return the learning rates of all groups."""
        for group in self.optimizer.param_groups if self._momentum is not None else ():
            if group["algorithm"] == "muon":
                group["momentum"] = self._momentum
        return [float(base) * self.factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values; the clock keeps its own state."""
        return {
            "last_epoch": self.last_epoch,
            "factor": self.factor,
            "momentum": self._momentum,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved point of the schedule, with the learning rates of the current config."""
        self.last_epoch, self.factor = state_dict["last_epoch"], state_dict["factor"]
        self._momentum = state_dict["momentum"]
        self._last_lr = [*self._written()]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr
