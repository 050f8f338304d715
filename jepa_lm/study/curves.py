"""Curves over a run: means over seeds, with bands, of the columns of metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jepa_lm.study.chart import thinned
from jepa_lm.study.measure import Measure
from jepa_lm.study.runs import Run
from jepa_lm.study.statistics import t_interval
from jepa_lm.utils.metrics import TRAINING

VALIDATED_OFTEN = 3
"""Points of the validation score that every run needs for it to be drawn instead of the training score."""
SMOOTHED = 20
"""A point of the training score is the mean of 1/SMOOTHED of a run's log points."""


@dataclass(frozen=True)
class Curve:
    """Mean and band over seeds, by optimizer step."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: tuple[tuple[float, ...], ...]
    """Values of each seed."""


@dataclass(frozen=True)
class Metric:
    """A column of metrics.csv that is drawn, and its name in figures."""

    column: str
    says: str
    window: int = 1
    """Number of log points in the trailing mean."""


def score_metric(runs: Sequence[Run], measure: Measure) -> Metric:
    """Return the validation score if every run has several during training, else that of training batches."""
    validation = measure.metric
    often = runs and all(len(run.series(validation)) >= VALIDATED_OFTEN for run in runs)
    if often or validation not in TRAINING:
        return Metric(validation, f"validation {measure.unit}")
    training = TRAINING[validation]
    points = min((len(run.series(training)) for run in runs), default=0)
    window = max(1, points // SMOOTHED)
    said = f", mean of {window} log points" if window > 1 else ""
    return Metric(training, f"training {measure.unit}{said}", window)


def over_seeds(runs: Mapping[str, Run], metric: Metric) -> Curve | None:
    """Return the mean, with a band from the lowest to the highest seed, at the steps that all seeds have."""
    steps, values = _table(runs, metric)
    if not steps:
        return None
    return _curve(steps, values.mean(0), values.min(0), values.max(0), values)


def difference(
    treatment: Mapping[str, Run], control: Mapping[str, Run], metric: Metric
) -> Curve | None:
    """Return treatment minus control, seed by seed at equal steps, with a 95 % interval of the mean."""
    seeds = [seed for seed in treatment if seed in control]
    apart: dict[str, dict[int, float]] = {}
    for seed in seeds:
        left, right = (dict(_smooth(runs[seed], metric)) for runs in (treatment, control))
        apart[seed] = {step: left[step] - right[step] for step in left if step in right}
    steps, values = _aligned(apart)
    if not steps:
        return None
    mean = values.mean(0)
    low, high = t_interval(values.T) if len(values) > 1 else (mean, mean)
    return _curve(steps, mean, low, high, values)


def _smooth(run: Run, metric: Metric) -> list[tuple[int, float]]:
    # A resumed run has some steps twice, with equal values.
    points = sorted(dict(run.series(metric.column)).items())
    if metric.window == 1:
        return points
    values = np.convolve([v for _, v in points], np.ones(metric.window) / metric.window, "valid")
    return [
        (step, float(v)) for (step, _), v in zip(points[metric.window - 1 :], values, strict=True)
    ]


def _table(runs: Mapping[str, Run], metric: Metric) -> tuple[list[int], np.ndarray]:
    return _aligned({seed: dict(_smooth(run, metric)) for seed, run in runs.items()})


def _aligned(found: Mapping[str, Mapping[int, float]]) -> tuple[list[int], np.ndarray]:
    """Return the steps that all runs have, and values [seed, step]; runs without the column are skipped."""
    rows = [row for row in found.values() if row]
    if not rows:
        return [], np.empty((0, 0))
    steps = list(thinned(sorted(set.intersection(*(set(row) for row in rows)))))
    return steps, np.array([[row[step] for step in steps] for row in rows])


def _curve(
    steps: Sequence[int], mean: np.ndarray, low: np.ndarray, high: np.ndarray, values: np.ndarray
) -> Curve:
    middle, lowest, highest = (tuple(row.tolist()) for row in (mean, low, high))
    return Curve(tuple(steps), middle, lowest, highest, tuple(map(tuple, values.tolist())))
