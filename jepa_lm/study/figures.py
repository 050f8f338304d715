"""Figures of the results: differences from the controls, and scores against the weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy

from jepa_lm.study import formatting as words
from jepa_lm.study.figure_styles import PANEL, Panel, Style
from jepa_lm.study.request import WEIGHT
from jepa_lm.study.results import ArmResult, Results, Treatment, role_of
from jepa_lm.study.statistics import Effect
from jepa_lm.study.svg import INK, MUTED, SERIES, drawing, inline, new_figure
from jepa_lm.utils.quoting import literal

BESIDE, LABEL = 26, 56
"""Characters of a label that fit beside its numbers, and in the whole width."""


def effects(treatment: Treatment, look: Mapping[str, Style], name: str) -> Panel | None:
    """Draw the differences of a treatment from each of its controls."""
    rows = [
        (f"against {role_of(a)}", a.effect, look[treatment.arm.name])
        for a in treatment.against
        if a.effect.n
    ]
    return _differences("Treatment minus control", rows, name) if rows else None


def overview(treatments: Sequence[Treatment], look: Mapping[str, Style]) -> Panel | None:
    """Draw the differences of all treatments from their first control."""
    rows = [(t.arm.label, t.main.effect, look[t.arm.name]) for t in treatments if t.main.effect.n]
    return _differences("Treatments minus their control", rows, "overview") if rows else None


def _differences(title: str, rows: Sequence[tuple[str, Effect, Style]], name: str) -> Panel:
    """Draw every seed as a circle, and the mean as a diamond on its 95 % interval."""
    with drawing():
        stacked = max(len(label) for label, *_ in rows) > BESIDE
        figure = new_figure(44 + (52 if stacked else 34) * len(rows))
        axes = figure.add_subplot()
        axes.grid(visible=False)
        for row, (label, effect, style) in enumerate(reversed(rows)):
            _difference_row(axes, row, label, effect, style, stacked)
        axes.set_ylim(-0.45, len(rows) - (0.35 if stacked else 0.2))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("difference in BPB (below zero: the treatment is better)")
        says = "; ".join(f"{label}: {words.signed(effect.mean)} BPB" for label, effect, _ in rows)
        return Panel(
            f"{title}: seeds, mean, 95 % interval", inline(figure, name, f"{title}. {says}")
        )


def _difference_row(
    axes: Axes, row: int, label: str, effect: Effect, style: Style, stacked: bool
) -> None:
    """Draw one row; if `stacked`, numbers go below the label because there is no room beside it."""
    apart = list(effect.differences)
    assert effect.mean is not None
    axes.plot([0, 0], [row - 0.24, row + 0.14], color=INK, lw=0.9)
    axes.plot(apart, [row - 0.17] * len(apart), "o", ms=3.2, mfc="none", mec=MUTED, mew=0.7)
    if effect.interval is not None:
        axes.plot(effect.interval, [row, row], color=style.colour, lw=2.2, solid_capstyle="butt")
    axes.plot([effect.mean], [row], "D", ms=5, color=style.colour)
    place: dict[str, Any] = dict(transform=axes.get_yaxis_transform(), fontsize=8, va="bottom")
    above = 0.42 if stacked else 0.2
    axes.text(0, row + above, _short(label), ha="left", **place)
    numbers = words.signed(effect.mean)
    if effect.interval is not None:
        numbers += f" {words.between(effect.interval, words.signed)}"
    if stacked:
        axes.text(0, row + 0.18, numbers, ha="left", color=MUTED, **place)
    else:
        axes.text(1, row + 0.2, numbers, ha="right", **place)


def weights(results: Results) -> list[Panel]:
    """Draw BPB against the weight of the objective: seeds, means and their 95 % intervals."""
    families: dict[str, list[tuple[float, ArmResult]]] = {}
    for arm in results.arms.values():
        settings = dict(arm.group.settings)
        weight = _number(settings.pop(WEIGHT, None))
        if weight is not None and arm.bpb:
            family = " ".join(f"{key}={value}" for key, value in settings.items())
            families.setdefault(family, []).append((weight, arm))
    swept = {name: sorted(f, key=lambda e: e[0]) for name, f in families.items() if len(f) > 1}
    ends = [
        end
        for family in swept.values()
        for _, arm in family
        for end in (*arm.bpb.values(), *(arm.interval or ()))
    ]
    return [
        _weights(name or "all arms", family, SERIES[i % len(SERIES)], f"weight{i}", ends)
        for i, (name, family) in enumerate(swept.items())
    ]


def _weights(
    title: str,
    family: Sequence[tuple[float, ArmResult]],
    colour: str,
    name: str,
    ends: Sequence[float],
) -> Panel:
    with drawing():
        figure = new_figure(PANEL)
        axes = figure.add_subplot()
        at = [weight for weight, _ in family]
        means = [arm.mean for _, arm in family if arm.mean is not None]
        axes.plot(at, means, color=colour, marker="D", ms=4)
        for weight, arm in family:
            seeds = list(arm.bpb.values())
            beside = offset_copy(axes.transData, figure, x=6, units="points")
            circles: dict[str, Any] = dict(ms=3.2, mfc="none", mec=MUTED, mew=0.7, transform=beside)
            axes.plot([weight] * len(seeds), seeds, "o", **circles)
            if arm.interval is not None:
                axes.plot([weight] * 2, arm.interval, color=colour, lw=2.2, solid_capstyle="butt")
        smallest = min((w for w in at if w > 0), default=1.0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        axes.set_xticks(at, [f"{w:g}" for w in at])
        axes.minorticks_off()
        # One scale for all panels, wide enough for every seed and interval.
        room = 0.06 * (max(ends) - min(ends)) or 0.01
        axes.set_ylim(min(ends) - room, max(ends) + room)
        axes.set_xlabel("jepa.weight (0 is cross entropy alone)")
        axes.set_ylabel("validation BPB (bits per byte)")
        return Panel(title, inline(figure, name, f"validation BPB against jepa.weight: {title}"))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _short(text: str) -> str:
    text = literal(text)
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"
