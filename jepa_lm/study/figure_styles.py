"""How arms are drawn: the same line in every figure, named once for all of them.

Treatments have a colour each, of Okabe and Ito's palette; controls have the colour of the text and
dashes.
"""

from __future__ import annotations

from dataclasses import dataclass

from jepa_lm.study.results import Results
from jepa_lm.study.svg import INK, SERIES, VARIABLES

PANEL = 175
"""Height of a panel in points."""
DASHES = ("4 2", "1 2", "6 2 1 2", "2 2")


@dataclass(frozen=True)
class Panel:
    """A figure with its heading."""

    title: str
    svg: str
    arms: tuple[str, ...] = ()
    """Whose lines are in it."""


@dataclass(frozen=True)
class Style:
    """How an arm is drawn everywhere."""

    name: str
    colour: str
    dash: str
    """As SVG has it; empty is a solid line."""

    @property
    def variable(self) -> str:
        """The colour as the page has it."""
        return VARIABLES[self.colour]

    @property
    def line(self) -> tuple[float, tuple[float, ...]] | str:
        """The same dash as matplotlib has it."""
        return (0, tuple(float(x) for x in self.dash.split())) if self.dash else "-"


def styles(results: Results) -> dict[str, Style]:
    """A style for each arm; all but controls and what has to equal them have colours."""
    plan = results.manifest
    same = {folder for identity in plan.identities for folder in identity.runs}
    controls = {c.against for c in plan.comparisons}
    controls |= {group.name for group in plan.groups if same & set(group.runs.values())}
    controls -= {c.of for c in plan.comparisons}
    found, coloured, plain = {}, 0, 0
    for name in results.arms:
        if name in controls:
            dash = "" if plain == 0 else DASHES[(plain - 1) % len(DASHES)]
            found[name], plain = Style(name, INK, dash), plain + 1
        else:
            again, which = divmod(coloured, len(SERIES))
            dash = "" if again == 0 else DASHES[(again - 1) % len(DASHES)]
            found[name], coloured = Style(name, SERIES[which], dash), coloured + 1
    return found
