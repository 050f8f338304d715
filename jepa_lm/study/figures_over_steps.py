"""Figures over the steps of a run: scores, differences from the control, diagnostics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jepa_lm.study.curves import Curve, Metric, difference, over_seeds, score_metric
from jepa_lm.study.diagnostics import DIAGNOSTICS
from jepa_lm.study.figure_styles import PANEL, Panel, Style
from jepa_lm.study.results import Results
from jepa_lm.study.svg import INK, SERIES, drawing, inline, new_figure

START = 0.2
"""Share of a run that the axis may leave out: its scores are so high that the rest would look flat."""


def score_curves(results: Results, look: Mapping[str, Style]) -> tuple[Metric, list[Panel]]:
    """Draw BPB over steps, then each treatment's difference from its first control."""
    metric = score_metric(results.finished)
    curves = {name: over_seeds(arm.runs, metric) for name, arm in results.arms.items()}
    panels = [
        (title, {name: curve for name in names if (curve := curves[name]) is not None})
        for title, names in _panels(results)
    ]
    shown = [(title, found) for title, found in panels if found]
    limits = _limits([curve for _, found in shown for curve in found.values()])
    label = f"{metric.says.partition(',')[0]} (bits per byte)"
    drawn = [
        _curves(title, found, look, label, f"curve{i}", limits)
        for i, (title, found) in enumerate(shown)
    ]
    apart = [
        (t, curve)
        for t in results.treatments
        if (curve := difference(t.arm.runs, t.main.control.runs, metric)) is not None
    ]
    limits = _limits([curve for _, curve in apart], [0.0])
    below = [
        _curves(
            f"{t.arm.name} minus {t.main.control.name}",
            {t.arm.name: curve},
            look,
            "difference in BPB",
            f"apart{i}",
            limits,
            zero=True,
        )
        for i, (t, curve) in enumerate(apart)
    ]
    return metric, drawn + below


def diagnostics(results: Results, look: Mapping[str, Style]) -> list[Panel]:
    """Draw the diagnostics of collapse and of missing gradients over steps."""
    panels = []
    for key, diagnostic in DIAGNOSTICS.items():
        if not diagnostic.says:
            continue
        metric = Metric(f"jepa/{key}", diagnostic.says)
        curves = {
            name: curve
            for name, arm in results.arms.items()
            if (curve := over_seeds(arm.runs, metric)) is not None
        }
        if curves:
            panels.append(_curves(metric.says, curves, look, metric.column, key, None))
    return panels


def _curves(
    title: str,
    curves: Mapping[str, Curve],
    look: Mapping[str, Style],
    label: str,
    name: str,
    limits: tuple[float, float] | None,
    *,
    zero: bool = False,
) -> Panel:
    """Draw lines with bands over steps."""
    with drawing():
        figure = new_figure(PANEL)
        axes = figure.add_subplot()
        if zero:
            axes.axhline(0, color=INK, lw=0.8)
        faint = 0.18 if len(curves) <= 3 else 0.08
        for arm, curve in curves.items():
            style = look[arm]
            axes.fill_between(
                curve.steps, curve.low, curve.high, color=style.colour, alpha=faint, lw=0
            )
            alone = "o" if len(curve.steps) == 1 else ""
            axes.plot(
                curve.steps, curve.mean, color=style.colour, ls=style.line, marker=alone, ms=3
            )
        if limits is not None:
            axes.set_ylim(*limits)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(label)
        says = f"{label} over optimizer steps: {title}"
        return Panel(title, inline(figure, name, says), tuple(curves))


def _panels(results: Results) -> list[tuple[str, list[str]]]:
    """Return titles and arms of the panels: each treatment with its controls, or else six arms each."""
    if results.treatments:
        return [
            (t.arm.name, [*dict.fromkeys(a.control.name for a in t.against), t.arm.name])
            for t in results.treatments
        ]
    names, size = list(results.arms), len(SERIES)
    return [
        (f"arms {i + 1} to {min(i + size, len(names))}", names[i : i + size])
        for i in range(0, len(names), size)
    ]


def _limits(curves: Sequence[Curve], shown: Sequence[float] = ()) -> tuple[float, float] | None:
    """Return the limits of an axis that all panels share; it includes `shown`, not the start of training."""
    ends = [
        end
        for curve in curves
        for step, *both in zip(curve.steps, curve.low, curve.high, strict=True)
        if step >= START * curve.steps[-1]
        for end in both
    ]
    ends += shown
    if not ends or min(ends) == max(ends):
        return None
    room = 0.04 * (max(ends) - min(ends))
    return min(ends) - room, max(ends) + room
