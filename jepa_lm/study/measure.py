"""What a verdict is about: which metric of a run, and at which point of it.

Two estimands, never mixed: the metric at the budget, and the best of the validations within the budget. In
training on little text a model overfits, and an objective may be a better brake without ever reaching a lower
loss; the first estimand would call that a gain, the second would not. The best is chosen on the text that is
reported, for all arms alike and at the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jepa_lm.study.runs import Run
from jepa_lm.study.statistics import MARGIN
from jepa_lm.utils.metrics import LOSSES, METRICS, MetricName, Quantity

Estimand = Literal["budget", "best"]
FORMER_ESTIMANDS: dict[str, Estimand] = {"minimum": "best"}
"""Names that estimands had, in commands and in plans of earlier versions."""
ONE_BYTE = 1.01 * math.log(2)
"""Nats per token for each bit per byte, below which tokens are bytes."""
OF_A_SHARE = 0.01
"""Largest difference of a share that does not matter."""


@dataclass(frozen=True)
class Measure:
    """The number of a run that is compared.

    Args:
        metric: a key of `METRICS`. estimand: `budget`, the final validation, or `best`, the best of all.
        margin: largest difference that does not matter, in the metric's unit.
        nats_per_bpb: nats per token for each bit per byte of the validation text; None for what has no bytes.
    """

    metric: MetricName = "val/bpb"
    estimand: Estimand = "budget"
    margin: float = MARGIN
    nats_per_bpb: float | None = None

    @property
    def quantity(self) -> Quantity:
        """What the metric measures."""
        return METRICS[self.metric]

    @property
    def unit(self) -> str:
        """Unit, as numbers carry it."""
        return self.quantity.unit

    @property
    def is_loss(self) -> bool:
        """Whether it is in bits or nats, and no share."""
        return self.metric in LOSSES

    @property
    def margin_says(self) -> str:
        """The margin in its unit and, of a loss on text, in the other one."""
        told = f"{self.margin:.3g} {self.unit}"
        if self.nats_per_bpb is None or not self.is_loss:
            return told
        if self.metric == "val/bpb":
            return f"{told}, or {self.margin * self.nats_per_bpb:.3g} nats per token"
        return f"{told} per token, or {self.margin / self.nats_per_bpb:.3g} BPB"

    @property
    def better(self) -> str:
        """Which way is better, in a word."""
        return "larger" if self.quantity.larger else "lower"

    @property
    def side(self) -> str:
        """On which side of zero a difference is a gain, in a word."""
        return "above" if self.quantity.larger else "below"

    @property
    def says(self) -> str:
        """What is measured, for a sentence."""
        if self.estimand == "budget":
            return f"{self.quantity.says} of the final validation"
        end = "largest" if self.quantity.larger else "smallest"
        return f"{self.quantity.says}, the {end} of all validations within the budget"

    @property
    def warns(self) -> str:
        """A sentence on how the number was chosen; empty at the budget."""
        if self.estimand == "budget":
            return ""
        return (
            "The best is picked on the text that is reported, so every score is a little too good."
        )

    def of(self, run: Run) -> float | None:
        """Return the number of a run, or None if it has none."""
        return self._of(run, self.metric)

    def nats(self, run: Run) -> float | None:
        """Return the nats per token of the same estimand."""
        return self._of(run, "val/nll")

    def _of(self, run: Run, metric: MetricName) -> float | None:
        final = run.score(metric)
        if final is None or self.estimand == "budget":
            return final
        reached = [final, *(value for _, value in run.series(metric))]
        return min(reached, key=METRICS[metric].worse)


def measure_for(
    metric: MetricName | None, estimand: Estimand, runs: Iterable[Run], margin: float | None = None
) -> Measure:
    """Return the measure of a study; without a metric, bits per byte, or nats where no run has bytes.

    Args:
        margin: largest difference that does not matter; None: 0.005 nats per token of tokenized text, 0.005
            bits per byte of a model of bytes, 0.005 nats per token of what is not text, 0.01 of a share.
    """
    scored = [run for run in runs if run.nll is not None]
    if metric is None:
        metric = "val/nll" if scored and all(run.bpb is None for run in scored) else "val/bpb"
    nats = next((run.nll / run.bpb for run in scored if run.nll and run.bpb), None)
    if margin is None:
        margin = _margin(metric, nats)
    return Measure(metric, estimand, margin, nats)


def _margin(metric: MetricName, nats: float | None) -> float:
    if metric not in LOSSES:
        return OF_A_SHARE
    if nats is None:
        return MARGIN
    of_bytes = nats < ONE_BYTE
    if metric == "val/bpb":
        return MARGIN if of_bytes else MARGIN / nats
    return MARGIN * nats if of_bytes else MARGIN


def other_grids(arms: Iterable[tuple[str, Iterable[Run]]], measure: Measure) -> list[str]:
    """Return why the best of these arms cannot be compared: they were validated at other steps."""
    if measure.estimand == "budget":
        return []
    grids: dict[tuple[int, ...], str] = {}
    for name, runs in arms:
        for run in runs:
            grids.setdefault(tuple(sorted({step for step, _ in run.series(measure.metric)})), name)
    if len(grids) < 2:
        return []
    told = ", ".join(f"{_grid(steps)} ({name})" for steps, name in list(grids.items())[:3])
    return [f"steps of the validations, among which the best is taken: {told}"]


def _grid(steps: tuple[int, ...]) -> str:
    return f"{len(steps)} up to step {max(steps, default=0):,}"
