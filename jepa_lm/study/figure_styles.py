"""Line styles of the arms: the same in every figure, with one legend for all of them.

Colours are from Okabe and Ito's palette, made darker or lighter for the page's background; baselines
have the colour of the text.
"""

from __future__ import annotations

from dataclasses import dataclass

from jepa_lm.study.results import Results
from jepa_lm.study.svg import INK, SERIES, VARIABLES
from jepa_lm.study.verdict import BASELINES

PANEL = 175
"""Height of a panel in points."""
DASHES = ("4 2", "1 2", "6 2 1 2", "2 2")


@dataclass(frozen=True)
class Panel:
    """A figure with its heading."""

    title: str
    svg: str
    arms: tuple[str, ...] = ()
    """Arms whose lines are in the figure."""


@dataclass(frozen=True)
class Style:
    """Line style of an arm in every figure."""

    name: str
    colour: str
    dash: str
    """Dash pattern as in SVG; empty for a solid line."""

    @property
    def variable(self) -> str:
        """The colour as a CSS variable."""
        return VARIABLES[self.colour]

    @property
    def line(self) -> tuple[float, tuple[float, ...]] | str:
        """The dash pattern as in matplotlib."""
        return (0, tuple(float(x) for x in self.dash.split())) if self.dash else "-"


def styles(results: Results) -> dict[str, Style]:
    """Return a style for each arm: baselines and arms that must equal them in ink, all others in colour.

    Controls that are not a baseline are dashed, in colour, or in ink if there are too few colours.
    """
    plan = results.manifest
    treated = {c.of for c in plan.comparisons}
    same = {folder for identity in plan.identities for folder in identity.runs}
    plain = {c.against for c in plan.comparisons if c.role in BASELINES}
    plain |= {group.name for group in plan.groups if same & set(group.runs.values())}
    plain -= treated
    others = {c.against for c in plan.comparisons} - treated - plain
    if len(results.arms) - len(plain) > len(SERIES):
        plain, others = plain | others, set()
    found: dict[str, Style] = {}
    # Treatments first, so that their styles do not depend on their controls.
    for name in sorted(results.arms, key=lambda arm: (arm in others, arm in plain)):
        number = sum((arm in plain) == (name in plain) for arm in found)
        again, which = divmod(number, len(SERIES))
        if name in plain:
            found[name] = Style(name, INK, ("", *DASHES)[number % (len(DASHES) + 1)])
        elif name in others:
            found[name] = Style(name, SERIES[which], DASHES[number % len(DASHES)])
        else:
            found[name] = Style(name, SERIES[which], ("", *DASHES)[again % (len(DASHES) + 1)])
    return {name: found[name] for name in results.arms}
