"""Tables of a ladder: trends, rungs, power laws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jepa_lm.study import formatting as words
from jepa_lm.study.formatting import NOTHING
from jepa_lm.study.power_law import FEWEST_RUNGS
from jepa_lm.study.roles import BASELINES
from jepa_lm.study.statistics import Effect
from jepa_lm.study.table import Table
from jepa_lm.study.trend import Trend


def trends(found: Sequence[Trend]) -> Table:
    """Return the slopes of every treatment against its controls; the baseline first, which has the word."""
    rows = []
    for trend in found:
        of_word = trend.adjusted and trend.adjusted.difference
        rows.append((trend.label, _baseline(trend), trend.word, *_slope(trend.slope, of_word)))
        rows += [(trend.label, name, NOTHING, *_slope(e, None)) for name, e in trend.others.items()]
    unit = found[0].slope.unit if found else ""
    heads = (
        f"slope, {unit}",
        "95 % interval",
        "p of the slope",
        "p of the word, corrected",
        "seeds",
    )
    return Table(("treatment", "against", "trend", *heads), tuple(rows), words=3)


def _slope(slope: Effect, of_word: float | None) -> tuple[str, ...]:
    return (
        words.signed(slope.mean),
        words.between(slope.interval, words.signed),
        words.probability(slope.p_paired),
        words.probability(of_word),
        str(slope.n),
    )


def _baseline(trend: Trend) -> str:
    return BASELINES[trend.points[0].treatment.main.comparison.role]


def rungs(found: Sequence[Trend]) -> Table:
    """Return scores and difference at every rung."""
    rows = [
        (
            trend.label,
            point.rung,
            point.treatment.word,
            words.flops(point.log_flops),
            words.score(point.treatment.main.control.mean),
            words.score(point.treatment.arm.mean),
            words.signed(point.effect.mean),
            words.between(point.effect.interval, words.signed),
            words.probability(point.effect.p),
            str(point.effect.n),
        )
        for trend in found
        for point in trend.points
    ]
    heads = (
        "FLOPs",
        "baseline",
        "treatment's score",
        "difference",
        "95 % interval",
        "p",
        "pairs of seeds",
    )
    return Table(("treatment", "rung", "verdict at the rung", *heads), tuple(rows), words=3)


def laws(found: Sequence[Trend]) -> Table:
    """Return the power laws of every treatment and its baseline."""
    rows = []
    for trend in found:
        if trend.laws is None:
            continue
        sides = ((trend.label, trend.laws.treatment), (_baseline(trend), trend.laws.baseline))
        for name, side in sides:
            rows.append(
                (
                    name,
                    words.score(float(side.law.floor)),
                    words.between(side.floor),
                    words.figure(float(side.law.exponent)),
                    words.between(side.exponent, words.figure),
                    words.score(float(side.law.factor)),
                    words.score(side.residual),
                )
            )
    heads = (
        "E",
        "95 % bootstrap of E",
        "alpha",
        "95 % bootstrap of alpha",
        "A",
        "largest residual",
    )
    return Table(("curve", *heads), tuple(rows))


def multipliers(found: Sequence[Trend]) -> list[str]:
    """Say how much compute the baselines need for the losses of the treatments, or why that is unknown."""
    told = []
    for trend in found:
        if trend.laws is None:
            few = len(trend.points) < FEWEST_RUNGS
            lacks = f"{FEWEST_RUNGS} rungs" if few else "a loss of two seeds at every rung"
            told.append(f"{trend.label}: no power laws are fitted; they need {lacks}.")
            continue
        most = 10.0 ** (trend.x[-1] - trend.x[0])
        ratio = _times(trend.laws.multiplier, most)
        low, high = (_times(end, most) for end in trend.laws.multipliers)
        told.append(
            f"{trend.label}: for the higher of the two losses at {trend.points[-1].rung}, the baseline's "
            f"curve needs {ratio} [{low}, {high}] times the compute of the treatment's."
        )
    return told


def _times(value: float, most: float) -> str:
    """Format a ratio of computes; one from beyond the ladder is told as a bound."""
    if value == 0:
        return f"< {1 / most:.2g}"
    return f"> {most:.2g}" if math.isinf(value) else words.ratio(value)
