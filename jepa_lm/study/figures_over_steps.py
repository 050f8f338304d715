"""Figures over the steps of a run: scores, differences from the control, diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from jepa_lm.study import formatting as words
from jepa_lm.study.chart import Chart, Line, Panel, Points, Scale, Style, around, settled
from jepa_lm.study.curves import Curve, Metric, difference, over_seeds, score_metric
from jepa_lm.study.diagnostics import DIAGNOSTICS
from jepa_lm.study.results import Results

FEW = 8
"""Largest number of arms in a figure that shows their seeds; more lines could not be told apart."""


def score_curves(results: Results, look: Mapping[str, Style]) -> tuple[Metric, list[Panel]]:
    """Draw BPB over steps, of all arms and by treatment, and each treatment minus its first control."""
    metric = score_metric(results.finished, results.measure)
    name = _capital(metric.says.partition(",")[0])
    curves = {
        arm.name: curve
        for arm in results.arms.values()
        if (curve := over_seeds(arm.runs, metric)) is not None
    }
    if not curves:
        return metric, []
    up = _up([points for curve in curves.values() for points in _seeds(curve)])
    label = f"{metric.says} ({results.measure.quantity.says})"
    shown = [
        (title, {name: curves[name] for name in names if name in curves})
        for title, names in _panels(results)
    ]
    shown = [(title, found) for title, found in shown if found]
    drawn = [_curves(f"{name}: all arms", curves, look, label, up, words.score)]
    if len(shown) > 1:
        drawn += [
            _curves(f"{name}: {title}", found, look, label, up, words.score, wide=False)
            for title, found in shown
        ]
    return metric, drawn + _apart(results, look, metric)


def _apart(results: Results, look: Mapping[str, Style], metric: Metric) -> list[Panel]:
    apart = [
        (t, curve)
        for t in results.treatments
        if (curve := difference(t.arm.runs, t.main.control.runs, metric)) is not None
    ]
    ends = [_points(curve, side) for _, curve in apart for side in (curve.low, curve.high)]
    up = _up(ends, [0.0])
    return [
        _curves(
            f"{t.arm.name} minus {t.main.control.name}",
            {t.arm.name: curve},
            look,
            f"difference in {metric.says}",
            up,
            words.signed,
            zero=True,
            wide=len(apart) == 1,
        )
        for t, curve in apart
    ]


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
            ends = [point for curve in curves.values() for point in (*curve.low, *curve.high)]
            up, title = around(ends), _capital(metric.says)
            panels.append(_curves(title, curves, look, metric.column, up, words.figure, wide=False))
    return panels


def _curves(
    title: str,
    curves: Mapping[str, Curve],
    look: Mapping[str, Style],
    label: str,
    up: Scale,
    form: Callable[[float | None], str],
    *,
    zero: bool = False,
    wide: bool = True,
) -> Panel:
    """Draw the means as lines, over their seeds or, at `zero`, over bands."""
    steps = [step for curve in curves.values() for step in curve.steps]
    first, last = min(steps), max(steps)
    lines, ends = [], []
    for arm, curve in curves.items():
        end = form(curve.mean[-1])
        span = words.between((curve.low[-1], curve.high[-1]), form) if len(curve.runs) > 1 else ""
        ends.append(f"{arm}: {f'{end} {span}'.strip()} at step {curve.steps[-1]:,}")
        seeds = _seeds(curve) if len(curve.runs) > 1 and len(curves) <= FEW and not zero else ()
        band = tuple(zip(curve.steps, curve.low, curve.high, strict=True)) if zero else ()
        points = _points(curve, curve.mean)
        lines.append(Line(look[arm], points, seeds=seeds, band=band, says=ends[-1]))
    around_it = "95 % interval" if zero else "lowest to highest seed"
    drawn = Chart(
        f"{title}: {label} over optimizer steps; mean at the end [{around_it}]. {'; '.join(ends)}.",
        around((first, last), share=0.02),
        up,
        label,
        "optimizer steps",
        tuple(lines),
        zero=zero,
    )
    key = tuple((look[arm], form(curve.mean[-1])) for arm, curve in curves.items())
    return Panel(title, drawn, key, wide)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _points(curve: Curve, values: Sequence[float]) -> Points:
    return tuple(zip(curve.steps, values, strict=True))


def _seeds(curve: Curve) -> tuple[Points, ...]:
    return tuple(_points(curve, values) for values in curve.runs)


def _up(lines: Sequence[Points], shown: Sequence[float] = ()) -> Scale:
    """Return an axis that all panels share; it includes `shown`, not the start of training."""
    return around([*settled(lines), *shown])


def _panels(results: Results) -> list[tuple[str, list[str]]]:
    """Return titles and arms of the panels: each treatment with its controls, or else a few arms each."""
    if results.treatments:
        return [
            (t.arm.name, [*dict.fromkeys(a.control.name for a in t.against), t.arm.name])
            for t in results.treatments
        ]
    names = list(results.arms)
    parts = -(-len(names) // FEW)
    cuts = [len(names) * i // parts for i in range(parts + 1)] if parts else []
    return [(f"arms {i + 1} to {j}", names[i:j]) for i, j in pairwise(cuts)]
