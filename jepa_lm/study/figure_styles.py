"""Line styles of the arms: the same in every figure.

Colours are from Okabe and Ito's palette, made darker or lighter for the page's background; baselines
have the colour of the text.
"""

from __future__ import annotations

from collections.abc import Iterable

from jepa_lm.study.chart import INK, SERIES, Style
from jepa_lm.study.results import Results
from jepa_lm.study.roles import BASELINES

DASHES = ("8 3", "2 3", "9 3 2 3", "4 3", "14 4", "9 3 2 3 2 3", "1 5")
"""Dash patterns besides the solid line."""
LINES = ("", *DASHES)
DISTINCT = (len(SERIES) + 1) * len(LINES)
"""Number of styles; those of more arms repeat."""


def styles(results: Results) -> dict[str, Style]:
    """Return a style for each arm: baselines and arms that must equal them in ink, all others in colour.

    Controls that are not a baseline are dashed, in a colour of their own, or in their treatment's if there
    are too few colours. No two of up to `DISTINCT` arms have the same style.
    """
    plan = results.manifest
    treated = list(dict.fromkeys(c.of for c in plan.comparisons))
    same = {folder for identity in plan.identities for folder in identity.runs}
    plain = {c.against for c in plan.comparisons if c.role in BASELINES}
    plain |= {group.name for group in plan.groups if same & set(group.runs.values())}
    plain -= set(treated)
    of = {c.against: c.of for c in plan.comparisons if c.against not in plain | set(treated)}
    scarce = len(results.arms) - len(plain) > len(SERIES)
    found: dict[str, Style] = {}
    # Treatments first, so that their styles do not depend on their controls.
    for name in sorted(results.arms, key=lambda arm: (arm in of, arm in plain)):
        number = sum((arm in plain) == (name in plain) for arm in found)
        again, which = divmod(number, len(SERIES))
        if name in plain:
            wanted = _looks([INK], LINES)
        elif name in of:
            colour = found[of[name]].colour if scarce and of[name] in found else SERIES[which]
            wanted = _looks([colour], _from(DASHES, number))
        else:
            wanted = _looks([SERIES[which]], _from(LINES, again))
        found[name] = Style(name, *_free(wanted, found, number))
    return {name: found[name] for name in results.arms}


def _looks(colours: Iterable[str], dashes: Iterable[str]) -> list[tuple[str, str]]:
    return [(colour, dash) for dash in dashes for colour in colours]


def _from(dashes: tuple[str, ...], start: int) -> tuple[str, ...]:
    start %= len(dashes)
    return dashes[start:] + dashes[:start]


def _free(wanted: list[tuple[str, str]], found: dict[str, Style], number: int) -> tuple[str, str]:
    """Return the first look that no arm has: one of those wanted, else any; after the last, they repeat."""
    taken = {(style.colour, style.dash) for style in found.values()}
    every = _looks((*SERIES, INK), LINES)
    return next((look for look in (*wanted, *every) if look not in taken), every[number % DISTINCT])
