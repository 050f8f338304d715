"""Collapse: which figures of latents are its signs, and when a sign becomes an alarm.

Latents collapse in more than one way: onto one vector, onto few directions, by dimensions that stop varying,
by shrinking. Each way has a figure that becomes low (`jepa_lm.objective.diagnostics.spread`) and a limit.
Most limits follow the figure's highest reading so far, because a healthy latent may start with any scale and
with a low rank, but does not lose what it had. A sign becomes an alarm when it stays for some measurements in
a row and is not on its way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple

from jepa_lm.objective.diagnostics import MonitorSettings

MIN_ROWS = 8
"""With fewer latents, the figures mean nothing."""
FEW_DIRECTIONS = 0.05
"""A share of the possible directions that no healthy latent comes close to."""
LOW_RANK = 0.2
"""Below this share, a latent that has lost half of its directions has collapsed. Healthy ones may lose half,
and may begin below it (a projector to a larger width), but were not seen to do both."""
SHRUNK = 0.1
"""Share of its highest spread, absolute or relative, below which a latent has collapsed. Healthy ones were
seen to fall to 0.18 of it, and to 0.05 of their root mean square where latents are means (`chunk`)."""
LEAST_ALIVE = 0.75
"""Least share of dimensions that vary; all of them do in healthy latents."""
RISE, NOISE = 1.1, 0.1
"""A figure is on its way back if it is this much above the lowest of its row; below this share of its limit
it never is, because there it is mostly rounding."""
BEGINNING = 5
"""What a language model learns first is how frequent each token is, with hidden states that are nearly one
vector. So no sign counts in the first 1 / `BEGINNING` of a run, for at most `patience` measurements."""

KINDS = {
    "relative_spread": "are one common vector and little else",
    "effective_rank": "vary in hardly more than one direction",
    "rank_share": "have few directions left",
    "alive_share": "have dimensions that no longer vary",
    "std_rms": "have lost most of the spread that they had",
}
"""What a low figure says about the latents; the first of several that become an alarm is reported."""


class Collapse(NamedTuple):
    """A figure that stayed below its limit."""

    step: int
    tensor: str
    figure: str
    value: float
    threshold: float
    cause: str

    @property
    def kind(self) -> str:
        """The kind of collapse, in words."""
        return f"the {self.tensor} latents {KINDS.get(self.figure, 'do not differ')}"

    def __str__(self) -> str:
        return (
            f"collapse at step {self.step}: {self.kind} ({self.figure} is {self.value:.3g}, below "
            f"{self.threshold:.3g}); {self.cause}"
        )


class CollapseAlarm:
    """Alarm that is raised once, when a sign of collapse stays.

    Args:
        settings: limits, patience, and steps between measurements.
        cause: what in the composition allows a collapse.
        tensors: which of `context` and `target` to watch; predictions may have any spread.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        cause: str,
        tensors: tuple[str, ...] = ("context", "target"),
    ) -> None:
        self.settings, self.cause, self.tensors = settings, cause, tensors
        self.low: dict[str, list[float]] = {}
        """Readings below the limit, in a row up to the latest measurement, by tensor and figure."""
        self.best: dict[str, float] = {}
        """Highest readings of the run, by tensor and figure."""
        self.step: int | None = None
        """Step of the latest measurement."""
        self.judged = False
        """Whether the latest measurement had enough latents."""
        self.raised: Collapse | None = None

    def begins(self, step: int, measurements: int | None) -> bool:
        """Return whether a step is in the first fifth of a run: no sign counts there, see `BEGINNING`."""
        first = min(self.settings.patience, (measurements or 0) // BEGINNING)
        return step <= first * self.settings.every

    def patience(self, measurements: int | None) -> int:
        """Return the readings in a row that an alarm takes: at most half of those that the budget holds."""
        if measurements is None:
            return self.settings.patience
        return min(self.settings.patience, max(1, (measurements + 1) // 2))

    def read(
        self,
        step: int,
        figures: Mapping[str, float],
        rows: Mapping[str, int],
        measurements: int | None = None,
    ) -> Collapse | None:
        """Process a measurement; return the collapse if it raises the alarm, else None.

        Args:
            figures: of `spread`, by tensor and name, as in `target_effective_rank`.
            rows: latents of each tensor in the sample.
            measurements: how many the budget holds, None if that is not known.
        """
        if self.step is not None and step - self.step > self.settings.every:
            self.low.clear()  # what happened between is not known
        self.step, patience, found = step, self.patience(measurements), None
        begins = self.begins(step, measurements)
        self.judged = all(rows[tensor] >= MIN_ROWS for tensor in self.tensors)
        for tensor in self.tensors:
            for figure in KINDS:
                key = f"{tensor}_{figure}"
                value, limit = figures[key], self._limit(tensor, figure)
                if begins or rows[tensor] < MIN_ROWS or not value < limit:
                    self.low.pop(key, None)
                else:
                    row = self.low[key] = [*self.low.get(key, ()), value][-self.settings.patience :]
                    stays = row[-patience:]
                    rises = value > RISE * min(stays) and value > NOISE * limit
                    if found is None and len(stays) == patience and not rises:
                        found = Collapse(step, tensor, figure, value, limit, self.cause)
                if rows[tensor] >= MIN_ROWS and value > self.best.get(key, 0.0):
                    self.best[key] = value
        if found is None or self.raised is not None:
            return None
        self.raised = found
        return found

    def _limit(self, tensor: str, figure: str) -> float:
        """Return the limit of a figure, given the readings so far."""
        best = self.best.get(f"{tensor}_{figure}", 0.0)
        match figure:
            case "relative_spread":
                return max(self.settings.min_std, SHRUNK * best)
            case "effective_rank":
                return self.settings.min_rank
            case "std_rms":
                return SHRUNK * best
            case "rank_share":
                return max(FEW_DIRECTIONS, min(LOW_RANK, best / 2))
            case _:
                return LEAST_ALIVE

    def verdict(self) -> str:
        """Say what the measurements so far show."""
        if self.raised is not None:
            return f"collapsed by step {self.raised.step}"
        if not self.judged:
            return f"fewer than {MIN_ROWS} of them are too few to see a collapse"
        for tensor in self.tensors:
            for figure, kind in KINDS.items():
                if f"{tensor}_{figure}" in self.low:
                    return f"a sign of collapse, the {tensor} latents {kind}"
        return "no sign of collapse"

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in plain containers."""
        raised = None if self.raised is None else self.raised._asdict()
        return {"low": self.low, "best": self.best, "step": self.step, "raised": raised}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned; a former one counts its low readings anew."""
        self.raised = None if state["raised"] is None else Collapse(**state["raised"])
        if "best" in state:
            self.low, self.best, self.step = state["low"], state["best"], state["step"]


def is_saved_alarm(state: Mapping[str, Any]) -> bool:
    """Return whether entries of a checkpoint have the form of `CollapseAlarm.state_dict`, or a former one."""
    raised, low, best = state.get("raised", ""), state.get("low"), state.get("best", {})
    if not (isinstance(low, dict) and isinstance(best, dict)):
        return False
    if "best" in state:
        rows = [row if isinstance(row, list) else [None] for row in low.values()]
        readings = [*best.values(), *(value for row in rows for value in row)]
        if type(state.get("step")) not in (int, NoneType) or not all(map(_is_number, readings)):
            return False
    return raised is None or (
        isinstance(raised, dict)
        and raised.keys() == set(Collapse._fields)
        and all(map(_is_number, (raised["step"], raised["value"], raised["threshold"])))
        and all(type(raised[name]) is str for name in ("tensor", "figure", "cause"))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
