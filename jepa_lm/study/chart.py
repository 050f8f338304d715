"""Charts as data for `chart.html.j2`: positions are shares of an area that is as wide as the page allows.

Lines are SVG that is stretched; text and marks are HTML around and above it, and have the same size on a
phone as on a desktop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

INK, MUTED = "var(--ink)", "var(--muted)"
SERIES = tuple(f"var(--series-{i})" for i in range(6))
"""Colours as CSS variables, which the page sets for light and for dark mode."""
SIDE = 1000
"""Width and height of the SVG in its own units, before it is stretched."""
DRAWN = 200
"""Largest number of points drawn of a line; more cannot be distinguished."""
FARTHEST = 50
"""Values further away than this many heights of the area are drawn at that distance, out of sight."""
TICKS = 5
START = 0.2
"""Share of a run that an axis may leave out: its scores are so high that the rest would look flat."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Style:
    """Line style of an arm in every chart."""

    name: str
    colour: str
    dash: str = ""
    """Dash pattern as in SVG; empty for a solid line."""


@dataclass(frozen=True)
class Scale:
    """An axis: maps values to shares of its length."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    """Positions as shares, with labels."""

    def __call__(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """A line, with what shows its uncertainty."""

    style: Style
    points: Points
    seeds: tuple[Points, ...] = ()
    """Thin lines."""
    band: tuple[tuple[float, float, float], ...] = ()
    """x, lower and upper end; the area between them is shaded."""
    bars: tuple[tuple[float, float, float], ...] = ()
    """x, lower and upper end of vertical bars."""
    says: str = ""
    """What a pointer over the line shows."""


@dataclass(frozen=True)
class Chart:
    """Lines over an axis."""

    says: str
    """The numbers in words, for readers who cannot see it."""
    across: Scale
    up: Scale
    label: str
    """What goes up; empty if the title says it."""
    under: str
    """What goes across."""
    lines: tuple[Line, ...]
    zero: bool = False
    """Draw a line at zero."""
    marked: bool = False
    """Draw a diamond at each point of a line."""
    seeds: Points = ()
    """Circles."""
    upright: bool = False
    """Labels of the axis below are turned where there is too little room for them."""

    side = SIDE

    def level(self, share: float) -> str:
        """Return a line across at a share of the height."""
        return f"M0 {round(SIDE * (1 - share))}H{SIDE}"

    def path(self, points: Points) -> str:
        """Return the points in the units of the SVG."""
        return " ".join(f"{self._x(x)},{self._y(y)}" for x, y in points)

    def area(self, band: Sequence[tuple[float, float, float]]) -> str:
        """Return the outline of a band in the units of the SVG."""
        there, back = ((x, low) for x, low, _ in band), ((x, high) for x, _, high in band[::-1])
        return self.path([*there, *back])

    def place(self, x: float, y: float) -> str:
        """Return the position of a mark as CSS."""
        return f"left: {100 * self.across(x):.2f}%; bottom: {100 * self.up(y):.2f}%"

    def _x(self, value: float) -> int:
        return round(SIDE * self.across(value))

    def _y(self, value: float) -> int:
        return round(SIDE * (1 - min(FARTHEST, max(-FARTHEST, self.up(value)))))


@dataclass(frozen=True)
class Row:
    """A difference from a control."""

    label: str
    word: str
    """The verdict, or empty."""
    tone: str
    """CSS class of the verdict."""
    numbers: str
    colour: str
    mean: float
    interval: tuple[float, float] | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Forest:
    """Differences below one another, each with its mean, interval and seeds."""

    says: str
    across: Scale
    under: str
    rows: tuple[Row, ...]

    def place(self, value: float) -> str:
        """Return the position of a mark as CSS."""
        return f"left: {100 * self.across(value):.2f}%"

    def span(self, ends: tuple[float, float]) -> str:
        """Return the position of a bar as CSS."""
        low, high = (self.across(end) for end in ends)
        return f"left: {100 * low:.2f}%; width: {100 * (high - low):.2f}%"


@dataclass(frozen=True)
class Panel:
    """A figure with its heading."""

    title: str
    drawn: Chart | Forest
    key: tuple[tuple[Style, str], ...] = ()
    """Styles of its lines, each with the number at its end."""
    wide: bool = True
    """It has the whole width of the page; others stand side by side."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the lines."""
        lines = self.drawn.lines if isinstance(self.drawn, Chart) else ()
        return tuple(line.style.name for line in lines)


def scale(low: float, high: float, most: int = TICKS) -> Scale:
    """Return an axis between two values, with about `most` round ticks; equal values get room around them."""
    if not high > low:
        room = 0.05 * abs(high) or 1.0
        low, high = low - room, high + room
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [i * step for i in range(first, last + 1)]
    places = [(value - low) / (high - low) for value in values]
    return Scale(low, high, tuple(zip(places, _labels(values, step), strict=True)))


def around(values: Iterable[float], most: int = TICKS, *, share: float = 0.05) -> Scale:
    """Return an axis that holds the values, with room at both ends."""
    values = list(values)
    low, high = min(values), max(values)
    return scale(low - share * (high - low), high + share * (high - low), most)


def thinned(values: Sequence[Any]) -> Sequence[Any]:
    """Return at most `DRAWN` of the values, at equal distances, with the last one."""
    stride = -(-len(values) // DRAWN) or 1
    return values[::-1][::stride][::-1]


def settled(lines: Iterable[Points]) -> list[float]:
    """Return the values of lines without those of the first part of each, which an axis may leave out."""
    return [
        y
        for points in lines
        for x, y in points
        if x >= points[0][0] + START * (points[-1][0] - points[0][0])
    ]


def _labels(values: Sequence[float], step: float) -> list[str]:
    """Return ticks as text, with as many digits as their distance needs: 12000 is 12k."""
    largest = max(map(abs, values), default=0.0)
    units = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, letter = next(((u, sign) for u, sign in units if largest >= 10 * u), (1.0, ""))
    digits = next((d for d in range(7) if math.isclose(step / size, round(step / size, d))), None)
    form = "{:.3g}" if digits is None else f"{{:.{digits}f}}"
    return [f"{form.format(value / size)}{letter}" if value else "0" for value in values]
