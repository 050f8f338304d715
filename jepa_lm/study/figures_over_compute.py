"""Figures over the rungs of a ladder: the effect with its trend, and the losses with their power laws.

Lines are drawn between the smallest and the largest rung, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jepa_lm.study import formatting as words
from jepa_lm.study.chart import INK, SERIES, Chart, Line, Panel, Scale, Style, around
from jepa_lm.study.figures import labelled
from jepa_lm.study.paired import t_interval
from jepa_lm.study.roles import BASELINES
from jepa_lm.study.trend import Trend

DRAWN = 60
"""Points of a line."""
MARGIN = 0.08
"""Room at both ends of the axis, as a share: half of a label on a phone."""
UNDER = "training FLOPs of the baseline's run (logarithmic)"


def colours(trends: Sequence[Trend]) -> list[str]:
    """Return a colour for each trend."""
    return [SERIES[i % len(SERIES)] for i in range(len(trends))]


def effect(trend: Trend, colour: str, *, wide: bool) -> Panel | None:
    """Draw the difference at each rung: seeds, mean, 95 % interval; and the trend with its band."""
    known = [p for p in trend.points if p.effect.mean is not None]
    if not known:
        return None
    place, across, upright = _axis(trend)
    lines = []
    if trend.slope.interval is not None and not trend.apart:
        at = np.linspace(trend.x[0], trend.x[-1], DRAWN)
        mean, low, high = (values.tolist() for values in trend.line(at))
        x = [place(value) for value in at]
        band = tuple(zip(x, low, high, strict=True))
        lines.append(Line(Style("trend", colour), tuple(zip(x, mean, strict=True)), band=band))
    for p in known:
        x_of, found = place(p.log_flops), p.effect
        bars = () if found.interval is None else ((x_of, *found.interval),)
        lines.append(Line(Style(p.rung, colour), ((x_of, found.mean or 0.0),), bars=bars))
    seeds = [(place(p.log_flops), value) for p in known for value in p.effect.differences]
    ends = [
        end for line in lines for _, *of in (*line.points, *line.band, *line.bars) for end in of
    ]
    says = "; ".join(
        f"{p.rung}, {words.flops(p.log_flops)} FLOPs: {words.signed(p.effect.mean)} "
        f"{words.between(p.effect.interval, words.signed)}".removesuffix(f" {words.NOTHING}")
        for p in known
    )
    measure = known[0].treatment.arm.measure
    chart = Chart(
        f"Difference in {measure.unit} by compute, mean and 95 % interval, {trend.label}. {says}.",
        across,
        around([0.0, *ends, *(value for _, value in seeds)]),
        f"difference in {measure.unit} ({measure.side} zero: the treatment is better)",
        UNDER,
        tuple(lines),
        zero=True,
        seeds=seeds,
        upright=upright,
    )
    return Panel(f"{trend.label}: effect against compute", chart, wide=wide)


def losses(trend: Trend, colour: str, *, wide: bool) -> Panel | None:
    """Draw the mean score at each rung with its 95 % interval, and the power laws, or else straight lines."""
    if len(trend.seeds) < 2:
        return None
    place, across, upright = _axis(trend)
    role = BASELINES[trend.points[0].treatment.main.comparison.role]
    found = trend.laws
    ours, theirs = (None, None) if found is None else (found.treatment.law, found.baseline.law)
    sides = [
        (Style(role, INK), trend.scores[1], theirs),
        (Style(trend.label, colour), trend.scores[0], ours),
    ]
    lines, says = [], []
    at = np.linspace(trend.x[0], trend.x[-1], DRAWN)
    for style, scores, law in sides:
        means, (low, high) = scores.mean(axis=0), t_interval(scores.T)
        x = [place(value) for value in trend.x]
        curve = (
            zip(x, means, strict=True)
            if law is None
            else zip(map(place, at), law.at(at - at[0]), strict=True)
        )
        lines.append(Line(style, tuple(curve)))
        for one, mean, *ends in zip(x, means, low, high, strict=True):
            lines.append(Line(style, ((one, mean),), bars=((one, *ends),)))
        told = (f"{p.rung}: {words.score(m)}" for p, m in zip(trend.points, means, strict=True))
        says.append(f"{style.name}, {', '.join(told)}")
    measure = trend.points[0].treatment.arm.measure
    chart = Chart(
        f"{measure.unit} by compute, mean and 95 % interval. {'; '.join(says)}.",
        across,
        around(end for line in lines for _, *of in (*line.points, *line.bars) for end in of),
        f"validation {measure.unit} ({measure.quantity.says})",
        UNDER,
        tuple(lines),
        upright=upright,
    )
    key = tuple((style, words.score(scores[:, -1].mean())) for style, scores, _ in sides)
    return Panel(f"{measure.unit} against compute: {trend.label}", chart, key, wide)


def _axis(trend: Trend) -> tuple[Callable[[float], float], Scale, bool]:
    """Return the place of log10 of FLOPs on the axis, the axis, and whether its labels are turned."""
    low, length = trend.x[0], (trend.x[-1] - trend.x[0]) or 1.0

    def place(value: float) -> float:
        return float(MARGIN + (1 - 2 * MARGIN) * (value - low) / length)

    across, upright = labelled([place(x) for x in trend.x], [words.flops(x) for x in trend.x])
    return place, across, upright
