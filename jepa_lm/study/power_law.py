"""Loss curves over a ladder: a power law by least squares, with a bootstrap over seeds.

    loss = E + A u^-alpha,   u = compute / compute of the smallest rung

E is the floor, A what lies above it at the smallest rung, and alpha how fast that falls. For a given alpha,
the best E and A, at 0 or above, have a closed form; alpha is the best of a fine grid, sought twice. Three
parameters need four rungs: a law passes through three exactly, and nothing shows whether it is one. Seeds are
resampled whole, with all of their rungs, and treatment and baseline together. A handful of seeds makes such
intervals too narrow, see `jepa_lm.study.paired.bootstrap_interval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jepa_lm.study.power import ALPHA

FEWEST_RUNGS = 4
"""Rungs that leave a residual."""
EXPONENTS = (0.01, 3.0)
"""Range in which alpha is sought; a curve that is steeper or flatter is given its end."""
GRID = 300
"""Values of alpha that are tried at a time."""
RESAMPLES = 1000
Interval = tuple[float, float]


class Law(NamedTuple):
    """Parameters of one curve or of many, each of the same shape [...]."""

    floor: np.ndarray
    """E, in the unit of the loss."""
    factor: np.ndarray
    """A, in the unit of the loss."""
    exponent: np.ndarray
    """alpha"""

    def at(self, log_compute: np.ndarray | float) -> np.ndarray:
        """Return the loss at log10 of u, which broadcasts against the parameters."""
        return self.floor + self.factor * 10.0 ** (-self.exponent * log_compute)

    def reaches(self, loss: np.ndarray) -> np.ndarray:
        """Return log10 of the u at which a curve has a loss; infinite where it never has it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = -np.log10((loss - self.floor) / self.factor) / self.exponent
        return np.where(loss > self.floor, found, np.inf)


@dataclass(frozen=True)
class Fitted:
    """A law fitted to the means over seeds, with 95 % intervals."""

    law: Law
    floor: Interval
    exponent: Interval
    residual: float
    """Largest distance of a rung's mean loss from the law."""


@dataclass(frozen=True)
class Laws:
    """The laws of a treatment and its baseline."""

    treatment: Fitted
    baseline: Fitted
    multiplier: float
    """Compute that the baseline's curve needs, relative to the treatment's, for the higher of their losses at
    the largest rung. Above 1, the treatment saves compute."""
    multipliers: Interval
    """95 % interval; an end is 0 or infinite where that loss lies beyond the smallest rung."""


def fit(log_compute: np.ndarray, losses: np.ndarray) -> Law:
    """Fit a power law to each curve.

    Args:
        log_compute: log10 of u [rungs], rising from 0. losses: above 0 [..., rungs].
    """
    first = np.geomspace(*EXPONENTS, GRID)
    near = _best(log_compute, losses, first).exponent[..., None]
    step = first[1] / first[0]
    finer = np.clip(near * np.geomspace(1 / step, step, GRID), *EXPONENTS)
    return _best(log_compute, losses, finer)


def _best(log_compute: np.ndarray, losses: np.ndarray, exponents: np.ndarray) -> Law:
    """Return the best of these exponents [..., grid] for each curve, with its floor and factor."""
    z = 10.0 ** (-exponents[..., None] * log_compute)
    y = losses[..., None, :]
    centred = z - z.mean(axis=-1, keepdims=True)
    factor = np.maximum(0.0, (centred * y).sum(axis=-1) / (centred**2).sum(axis=-1))
    floor = y.mean(axis=-1) - factor * z.mean(axis=-1)
    through_zero = (z * y).sum(axis=-1) / (z**2).sum(axis=-1)
    factor = np.where(floor < 0, through_zero, factor)
    floor = np.maximum(0.0, floor)
    missed = ((floor[..., None] + factor[..., None] * z - y) ** 2).sum(axis=-1)
    at = missed.argmin(axis=-1)[..., None]
    exponents = np.broadcast_to(exponents, missed.shape)
    return Law(*(np.take_along_axis(v, at, axis=-1)[..., 0] for v in (floor, factor, exponents)))


def laws(log_compute: np.ndarray, treatment: np.ndarray, baseline: np.ndarray) -> Laws | None:
    """Fit the laws of a treatment and its baseline to the means over seeds; None with fewer than four rungs.

    Args:
        log_compute: log10 of the FLOPs of each rung [rungs], rising.
        treatment, baseline: losses [seeds, rungs] of the same seeds, two or more.
    """
    n, rungs = baseline.shape
    if rungs < FEWEST_RUNGS or n < 2:
        return None
    x = log_compute - log_compute[0]
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    resampled = [fit(x, side[drawn].mean(axis=1)) for side in (treatment, baseline)]
    ours, theirs = (
        _fitted(x, side.mean(axis=0), found)
        for side, found in zip((treatment, baseline), resampled, strict=True)
    )
    ratio = _multipliers(x[-1], ours.law, theirs.law)
    return Laws(ours, theirs, float(ratio), _interval(_multipliers(x[-1], *resampled)))


def _fitted(x: np.ndarray, means: np.ndarray, resampled: Law) -> Fitted:
    law = fit(x, means)
    residual = float(np.abs(law.at(x) - means).max())
    return Fitted(law, _interval(resampled.floor), _interval(resampled.exponent), residual)


def _multipliers(largest: float, treatment: Law, baseline: Law) -> np.ndarray:
    """Return the compute multiplier, see `Laws`; never from beyond the ladder.

    Args:
        largest: log10 of u at the largest rung.
    """
    ours, theirs = treatment.at(largest), baseline.at(largest)
    saved = largest - treatment.reaches(theirs)
    lost = largest - baseline.reaches(ours)
    saved, lost = (np.where(v > largest, np.inf, np.maximum(v, 0.0)) for v in (saved, lost))
    return np.where(ours <= theirs, 10.0**saved, 10.0**-lost)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [ALPHA / 2, 1 - ALPHA / 2], method="nearest")
    return float(low), float(high)
