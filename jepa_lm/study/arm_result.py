"""An arm of a study: its finished runs, what is measured of them, and how it is named."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from jepa_lm.study.losses import NODES, losses_of
from jepa_lm.study.manifest import Group
from jepa_lm.study.measure import Measure
from jepa_lm.study.runs import Run
from jepa_lm.study.statistics import t_interval
from jepa_lm.utils.nested import flat
from jepa_lm.utils.quoting import one_line

MOST_TOLD = 120
"""Characters of the reason why a run has no score."""


@dataclass(frozen=True)
class ArmResult:
    """A group and its finished runs."""

    group: Group
    runs: Mapping[str, Run]
    """By seed."""
    measure: Measure = field(default_factory=Measure)
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why runs have no score, by seed, if that is not the machine's doing."""

    @property
    def name(self) -> str:
        """Name of the group in study.json."""
        return self.group.name

    @cached_property
    def label(self) -> str:
        """A label for readers who do not know the names of arms: `objective=lewm jepa.weight=0.1`.

        It gives the swept settings with the values that the runs recorded, not those that were requested.
        """
        settings = self.group.settings
        run = next(iter(self.runs.values()), None)
        ran = {} if run is None else {**flat(run.config), "objective": run.objective}
        losses = {} if run is None else losses_of(run.config)
        weights = [f"{node}.weight" for node in losses or NODES[:1]]
        values = {
            key: settings.get(key) if ran.get(key) is None else ran[key]
            for key in ("objective", *weights, *settings)
        }
        told = [f"{key}={value}" for key, value in values.items() if value is not None]
        return " ".join(told) or self.name

    @cached_property
    def scores(self) -> dict[str, float]:
        """What is measured, by seed."""
        found = {seed: self.measure.of(run) for seed, run in self.runs.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    @cached_property
    def nll(self) -> dict[str, float]:
        """Nats per token by seed."""
        found = {seed: self.measure.nats(run) for seed, run in self.runs.items()}
        return {seed: nats for seed, nats in found.items() if nats is not None}

    def without(self, seeds: Collection[str]) -> ArmResult:
        """Return the arm without the runs of these seeds."""
        return replace(self, runs={s: run for s, run in self.runs.items() if s not in seeds})

    def under(self, measure: Measure) -> ArmResult:
        """Return the same runs under another measure."""
        return replace(self, measure=measure)

    @property
    def mean(self) -> float | None:
        """Mean of the scores."""
        return float(np.mean(list(self.scores.values()))) if self.scores else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the scores, with n - 1 in the denominator."""
        return float(np.std(list(self.scores.values()), ddof=1)) if len(self.scores) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean."""
        if len(self.scores) < 2:
            return None
        low, high = t_interval(np.array(list(self.scores.values())))
        return float(low), float(high)


def arm_of(folder: Path, group: Group, measure: Measure) -> ArmResult:
    """Return a group with its finished runs, sorted by seed."""
    found = {seed: Run(folder / below) for seed, below in group.runs.items()}
    finished = {s: found[s] for s in sorted(found, key=seed_order) if found[s].finished}
    failed = {s: _why(run) for s, run in found.items() if not run.finished and not run.lost}
    return ArmResult(group, finished, measure, failed)


def _why(run: Run) -> str:
    return one_line(run.summary.get("error") or "no finite score")[:MOST_TOLD]


def seed_order(seed: str) -> tuple[float, str]:
    """Return a sort key: numbers by value, before anything else."""
    return (float(seed), seed) if seed.lstrip("-").isdigit() else (math.inf, seed)
