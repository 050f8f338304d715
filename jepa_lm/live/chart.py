"""Line charts as SVG, in the colours and the font of the report's page.

The report's own figures need matplotlib, which takes a second to import: too long for the end of every run.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

from jepa_lm.utils.quoting import literal

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM, LETTER = 50, 12, 10, 36, 6.8
"""Margins, and the width of a letter, in the units of the view box; text is 11 units high."""
TICKS = 5
START = 0.2
"""Share of the steps whose values may lie above the axis: they are so high that the rest would look flat."""
DRAWN = 400
"""Largest number of points of a line."""


def lines(series: Mapping[str, Points], says: str, *, under: str = "optimizer steps") -> Markup:
    """Return a chart of up to six lines, each named at its end.

    Args:
        series: points by name, by rising x. says: description for readers who cannot see it.
        under: label of the x axis.
    """
    series = {name: points for name, points in series.items() if points}
    low, high = _limits(series.values())
    first = min(points[0][0] for points in series.values())
    last = max(points[-1][0] for points in series.values())
    if first == last:
        first = min(0.0, first)
    right = WIDTH - RIGHT
    if len(series) > 1:
        right -= round(LETTER * max(map(len, series)))
    across = _Axis(first, last or 1.0, LEFT, right)
    up = _Axis(low, high, HEIGHT - BOTTOM, TOP)
    clip = f"clip-{zlib.crc32(says.encode(errors='replace')):x}"
    drawn = [
        f'<clipPath id="{clip}"><rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>'
    ]
    for tick in _ticks(low, high):
        y = up(tick)
        drawn.append(_rule(LEFT, y, right, y) + _text(LEFT - 6, y + 4, _told(tick), "end"))
    for tick in _ticks(first, last):
        drawn.append(_text(across(tick), HEIGHT - BOTTOM + 15, _told(tick), "middle"))
    drawn.append(_text((LEFT + right) / 2, HEIGHT - 5, under, "middle"))
    for i, points in enumerate(series.values()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in _thinned(points))
        stroke = f"fill: none; stroke: var(--series-{i}); stroke-width: 1.8"
        drawn.append(f'<polyline clip-path="url(#{clip})" points="{path}" style="{stroke}"/>')
        if len(points) == 1:
            x, y = across(points[0][0]), up(points[0][1])
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--series-{i})"/>')
    if len(series) > 1:
        drawn += _names(series, up, right + 6)
    label = escape(literal(says))
    body = "".join(drawn)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
    )


class _Axis:
    """Maps values to places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.scale = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.scale


def _names(series: Mapping[str, Points], up: _Axis, x: float) -> list[str]:
    """Return the names of the lines, beside their right ends and never over one another."""
    ends = sorted((up(points[-1][1]) + 4, i) for i, points in enumerate(series.values()))
    names, found, lowest = list(series), [], float(TOP)
    for place, (y, i) in enumerate(ends):
        y = max(lowest, min(y, HEIGHT - BOTTOM - 13.0 * (len(ends) - place - 1)))
        found.append(_text(x, y, names[i], "start", f"var(--series-{i})", bold=True))
        lowest = y + 13
    return found


def _limits(series: Iterable[Points]) -> tuple[float, float]:
    """Return the limits of the y axis, with room at both ends."""
    values = [
        y
        for points in series
        for x, y in points
        if x >= points[0][0] + START * (points[-1][0] - points[0][0])
    ]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return about `TICKS` round numbers between the limits."""
    rough = (high - low) / TICKS
    if not rough > 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _told(value: float) -> str:
    """Return a tick's label: 12000 is 12k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _thinned(points: Points) -> Points:
    stride = -(-len(points) // DRAWN)
    return points[::-1][::stride][::-1]  # the last one stays


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} style="stroke: var(--rule)"/>'


def _text(
    x: float, y: float, text: str, anchor: str, fill: str = "var(--muted)", *, bold: bool = False
) -> str:
    style = f"fill: {fill}; font-size: 11px" + ("; font-weight: 600" if bold else "")
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} style="{style}">{escape(literal(text))}</text>'
