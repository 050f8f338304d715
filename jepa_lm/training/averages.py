"""Moving averages of a model's weights in float32: average <- m average + (1 - m) weights.

In bfloat16 a step of 1 - m = 0.001 is rounded away, so the average would never change. An average holds
buffers, not parameters: no optimizer sees it, and checkpoints include it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from torch import nn

from jepa_lm.model.ema import as_buffers, keep_float32, matched, move_towards
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Decay, checked
from jepa_lm.utils.schema import Ship

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class AveragedModel(nn.Module, Generic[AnyModule]):
    """A model whose weights are an average of another model's weights over steps.

    Args:
        model: the model to average; not stored.
    """

    def __init__(self, model: AnyModule) -> None:
        super().__init__()
        self.model: AnyModule = as_buffers(copy.deepcopy(model))

    def move(self, model: nn.Module, momentum: float) -> None:
        """Move the average towards the model's weights; `momentum` is the share of the old average kept."""
        move_towards(*matched(self.model, model), momentum)

    def _apply(self, fn: Any, recurse: bool = True) -> AveragedModel[AnyModule]:
        super()._apply(fn, recurse)
        keep_float32(self)
        return self


class WeightAverages(nn.Module, Generic[AnyModule]):
    """A run's weight averages, and the choice of the weights that ship.

    `ema` is an exponential moving average from the first step on; `swa` is the plain mean over the part of
    the run where the learning rate falls, and exists once it includes a step.
    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima" (2018).

    Args:
        model: the model to average; not stored.
        decay: m of the EMA at every optimizer step, or None for no EMA.
        swa: keep the mean. swa_every: optimizer steps between the weights it includes.
        ship: `raw`, `ema`, `swa`, `best` (whichever scored best at the latest validation), or `auto` (the
            EMA if there is one, else the mean, else the raw weights).

    Raises:
        UserError: a value is out of range, or `ship` names an average that is not kept.
    """

    @checked
    def __init__(
        self, model: AnyModule, *, decay: Decay | None, swa: bool, swa_every: Count, ship: Ship
    ) -> None:
        super().__init__()
        if (ship == "ema" and decay is None) or (ship == "swa" and not swa):
            switch = "average.decay, such as 0.997" if ship == "ema" else "average.swa=true"
            raise UserError(f"average.ship={ship}: the run keeps no such average; set {switch}")
        self.decay, self.swa_every, self.ship = decay, swa_every, ship
        self.ema = None if decay is None else AveragedModel(model)
        self.swa = AveragedModel(model) if swa else None
        self.taken = 0
        """Number of steps in the mean so far."""
        self.best: str | None = None
        """Choice of the latest validation if `ship=best`."""
        self._lr_factor: float | None = None

    def update(self, model: AnyModule, *, step: int, lr_factor: float) -> None:
        """Update the averages after an optimizer step."""
        if self.ema is not None:
            assert self.decay is not None
            self.ema.move(model, self.decay)
        falls = self._lr_factor is not None and lr_factor < self._lr_factor
        if lr_factor >= 1.0:
            self.taken = 0  # the fall was no warmdown: early estimates of pace mislead
        self._lr_factor = lr_factor
        if self.swa is not None and (falls or self.taken) and step % self.swa_every == 0:
            self.swa.move(model, self.taken / (self.taken + 1))
            self.taken += 1

    def models(self, model: AnyModule) -> dict[str, AnyModule]:
        """Return the sets of weights that exist now, by name, `raw` first."""
        found = {"raw": model}
        if self.ema is not None:
            found["ema"] = self.ema.model
        if self.swa is not None and self.taken:
            found["swa"] = self.swa.model
        return found

    def shipped(self) -> str:
        """Return the name of the weights to score and export now; `raw` if the chosen ones do not exist."""
        exists = {
            "raw": True,
            "ema": self.ema is not None,
            "swa": self.swa is not None and self.taken > 0,
        }
        wanted = (self.best or "auto") if self.ship == "best" else self.ship
        order = ("ema", "swa", "raw") if wanted == "auto" else (wanted, "raw")
        return next(name for name in order if exists[name])

    def choose(self, scores: Mapping[str, tuple[float, ...]]) -> None:
        """If `ship=best`, ship the weights with the lowest of these, which order by their first number."""
        if self.ship == "best":
            self.best = min(scores, key=scores.__getitem__)

    def bookkeeping(self) -> dict[str, Any]:
        """Return the state that a resumed run needs in addition to the tensors."""
        return {"taken": self.taken, "best": self.best, "lr_factor": self._lr_factor}

    def load_bookkeeping(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `bookkeeping` returned."""
        self.taken, self.best, self._lr_factor = state["taken"], state["best"], state["lr_factor"]
