"""What a verdict is about: which score of a run, and at which point of it.

Two estimands, never mixed: the score at the budget, and the minimum of the validations within the budget. In
training on little text a model overfits, and an objective may be a better brake without ever reaching a lower
score; the first estimand would call that a gain, the second would not. The minimum is chosen on the text that
is reported, for all arms alike and at the same steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jepa_lm.study.runs import Run

MetricName = Literal["val/bpb", "val/nll"]
Estimand = Literal["budget", "minimum"]
METRICS: dict[MetricName, tuple[str, str]] = {
    "val/bpb": ("BPB", "bits per byte"),
    "val/nll": ("nats", "nats per token"),
}
"""Metrics that a verdict can be about, with their units, short and long."""


@dataclass(frozen=True)
class Measure:
    """The score of a run that is compared; the lower, the better.

    Args:
        metric: a key of `METRICS`. estimand: `budget`, the final validation, or `minimum`, the best of all.
    """

    metric: MetricName = "val/bpb"
    estimand: Estimand = "budget"

    @property
    def unit(self) -> str:
        """Unit, as numbers carry it."""
        return METRICS[self.metric][0]

    @property
    def says(self) -> str:
        """What is measured, for a sentence."""
        if self.estimand == "budget":
            return f"{METRICS[self.metric][1]} of the final validation"
        return f"{METRICS[self.metric][1]}, the smallest of all validations within the budget"

    def of(self, run: Run) -> float | None:
        """Return the score of a run, or None if it has none."""
        return self._of(run, self.metric)

    def nats(self, run: Run) -> float | None:
        """Return the nats per token of the same estimand."""
        return self._of(run, "val/nll")

    def _of(self, run: Run, metric: MetricName) -> float | None:
        final = run.nll if metric == "val/nll" else run.bpb
        if final is None or self.estimand == "budget":
            return final
        return min([final, *(value for _, value in run.series(metric))])


def measure_for(metric: MetricName | None, estimand: Estimand, runs: Iterable[Run]) -> Measure:
    """Return the measure of a study; without a metric, bits per byte, or nats where no run has bytes."""
    if metric is None:
        scored = [run for run in runs if run.nll is not None]
        metric = "val/nll" if scored and all(run.bpb is None for run in scored) else "val/bpb"
    return Measure(metric, estimand)


def other_grids(arms: Iterable[tuple[str, Iterable[Run]]], measure: Measure) -> list[str]:
    """Return why minima of these arms cannot be compared: they were validated at other steps."""
    if measure.estimand == "budget":
        return []
    grids: dict[tuple[int, ...], str] = {}
    for name, runs in arms:
        for run in runs:
            grids.setdefault(tuple(sorted({step for step, _ in run.series(measure.metric)})), name)
    if len(grids) < 2:
        return []
    told = ", ".join(f"{_grid(steps)} ({name})" for steps, name in list(grids.items())[:3])
    return [f"steps of the validations, among which the minimum is taken: {told}"]


def _grid(steps: tuple[int, ...]) -> str:
    return f"{len(steps)} up to step {max(steps, default=0):,}"
