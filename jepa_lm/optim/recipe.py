"""Build the optimizer and scheduler of a module from the optimizer config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.optim.routing import freeze, route
from jepa_lm.optim.scheduler import ClockScheduler
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import Constant, Schedule
from jepa_lm.utils.kinds import Whole, checked


class OptimizerRecipe:
    """Parameter groups, frozen parameters and schedules of a run.

    Args:
        groups: routing rules by name, see `route`. freeze: see `freeze`.
        schedule: `lr`, a factor on the lr of every group, and `muon_momentum`; None keeps the groups' own.
        ghost_steps: extra steps before the first one, of which only the optimizer's moments are kept (#903).

    Raises:
        UserError: ghost_steps is negative.
    """

    @checked
    def __init__(
        self,
        *,
        groups: Mapping[str, Mapping[str, Any]],
        freeze: Sequence[str],
        schedule: Mapping[str, Schedule | None],
        ghost_steps: Whole,
    ) -> None:
        self.ghost_steps = ghost_steps
        self.groups, self.freeze = groups, freeze
        self.lr = schedule.get("lr") or Constant(value=1.0)
        self.muon_momentum = schedule.get("muon_momentum")

    def apply_freeze(self, module: nn.Module) -> list[str]:
        """Freeze the parameters that the recipe lists; return their names."""
        return freeze(module, self.freeze)

    def configure(
        self, module: nn.Module, clock: ProgressClock
    ) -> tuple[MuonAdamW, ClockScheduler]:
        """Return the optimizer of the module's trainable parameters and its scheduler."""
        optimizer = MuonAdamW(route(module, self.groups))
        return optimizer, ClockScheduler(
            optimizer, clock=clock, lr=self.lr, muon_momentum=self.muon_momentum
        )

    def phases(self) -> dict[str, Any]:
        """Return the phases of every schedule, for `describe=true`."""
        schedules = {"lr": self.lr, "muon_momentum": self.muon_momentum}
        return {name: s.phases() for name, s in schedules.items() if s is not None}
