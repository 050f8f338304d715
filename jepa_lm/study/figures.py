"""Figures of the results: differences from the controls, and scores against the weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from jepa_lm.study import formatting as words
from jepa_lm.study.arm_result import ArmResult
from jepa_lm.study.chart import SERIES, Chart, Forest, Line, Panel, Row, Scale, Style, around
from jepa_lm.study.losses import WEIGHTS
from jepa_lm.study.measure import Measure
from jepa_lm.study.results import Results
from jepa_lm.study.statistics import Effect
from jepa_lm.study.treatments import Treatment, role_of

MARGIN = 0.04
"""Room at both ends of the axis of weights, as a share."""
NEAREST = 0.042
"""Share of the axis that a turned label needs on a phone; a weight nearer to the last label gets none."""
ROOMY, SHORT = 0.11, 4
"""Share that a label of so many characters needs if it is not turned."""


def effects(treatment: Treatment, look: Mapping[str, Style]) -> Panel | None:
    """Draw the differences of a treatment from each of its controls."""
    rows = [
        _row(f"against {role_of(a)}", a.effect, look[treatment.arm.name])
        for a in treatment.against
        if a.effect.n
    ]
    measure = treatment.arm.measure
    return _differences("Treatment minus control", rows, measure) if rows else None


def overview(
    treatments: Sequence[Treatment], look: Mapping[str, Style], verdicts: Sequence[tuple[str, str]]
) -> Panel | None:
    """Draw the differences of all treatments from their first control.

    Args:
        verdicts: word and tone of each treatment.
    """
    rows = [
        _row(t.arm.label, t.main.effect, look[t.arm.name], *verdict)
        for t, verdict in zip(treatments, verdicts, strict=True)
        if t.main.effect.n
    ]
    if not rows:
        return None
    return _differences("Treatments minus their control", rows, treatments[0].arm.measure)


def _row(label: str, effect: Effect, style: Style, word: str = "", tone: str = "") -> Row:
    assert effect.mean is not None
    numbers = words.signed(effect.mean)
    if effect.interval is not None:
        numbers += f" {words.between(effect.interval, words.signed)}"
    return Row(
        label, word, tone, numbers, style.colour, effect.mean, effect.interval, effect.differences
    )


def _differences(title: str, rows: Sequence[Row], measure: Measure) -> Panel:
    """Draw every seed as a circle, and the mean as a diamond on its 95 % interval."""
    unit = measure.unit
    ends = [end for row in rows for end in (*row.seeds, *(row.interval or ()), row.mean, 0.0)]
    says = "; ".join(
        f"{row.label}: {row.numbers} {unit}, {words.number_of(len(row.seeds), 'seed')}"
        + (f", {row.word}" if row.word else "")
        for row in rows
    )
    under = f"difference in {unit} ({measure.side} zero: the treatment is better)"
    return Panel(
        f"{title}: seeds, mean, 95 % interval",
        Forest(f"{title}, mean and 95 % interval. {says}.", around(ends), under, tuple(rows)),
    )


def weights(results: Results) -> list[Panel]:
    """Draw BPB against the weight of the objective: seeds, means and their 95 % intervals."""
    families: dict[tuple[str, str], list[tuple[float, ArmResult]]] = {}
    for arm in results.arms.values():
        settings = dict(arm.group.settings)
        axis = next((key for key in WEIGHTS if key in settings), WEIGHTS[0])
        weight = _number(settings.pop(axis, None))
        if weight is not None and arm.scores:
            family = " ".join(f"{key}={value}" for key, value in settings.items())
            families.setdefault((axis, family), []).append((weight, arm))
    swept = {name: sorted(f, key=lambda e: e[0]) for name, f in families.items() if len(f) > 1}
    ends = [
        end
        for family in swept.values()
        for _, arm in family
        for end in (*arm.scores.values(), *(arm.interval or ()))
    ]
    # One scale for all panels, wide enough for every seed and interval.
    return [
        _weights(
            results.measure, axis, name or "all arms", arms, SERIES[i % len(SERIES)], around(ends)
        )
        for i, ((axis, name), arms) in enumerate(swept.items())
    ]


def _weights(
    measure: Measure,
    axis: str,
    title: str,
    family: Sequence[tuple[float, ArmResult]],
    colour: str,
    up: Scale,
) -> Panel:
    places = _places([weight for weight, _ in family])
    across, upright = labelled(places, [f"{weight:g}" for weight, _ in family])
    arms = list(zip(places, (arm for _, arm in family), strict=True))
    line = Line(
        Style(title, colour),
        [(x, arm.mean) for x, arm in arms if arm.mean is not None],
        bars=tuple((x, *arm.interval) for x, arm in arms if arm.interval is not None),
    )
    says = "; ".join(
        f"weight {weight:g}: {words.score(arm.mean)} {words.between(arm.interval)}".removesuffix(
            f" {words.NOTHING}"
        )
        for weight, arm in family
    )
    drawn = Chart(
        f"Validation {measure.unit} by {axis}, mean and 95 % interval, {title}. {says}.",
        across,
        up,
        f"validation {measure.unit} ({measure.quantity.says})",
        f"{axis} (0 is cross entropy alone)",
        (line,),
        marked=True,
        seeds=[(x, score) for x, arm in arms for score in arm.scores.values()],
        upright=upright,
    )
    return Panel(title, drawn)


def _places(at: Sequence[float]) -> list[float]:
    """Return rising weights as shares of the axis, on the scale that keeps them further apart.

    The logarithmic one begins at the smallest weight above zero, with zero a short way before it.
    """
    linear = [weight - at[0] for weight in at]
    found = linear
    if at[0] >= 0 and (above := [weight for weight in at if weight > 0]):
        logs = [math.log10(weight / above[0]) for weight in above]
        gap = min((b - a for a, b in pairwise(logs)), default=1.0)
        zeros = [-max(gap, logs[-1] / 10)] * (len(at) - len(above))
        found = max(linear, [*zeros, *logs], key=_nearest)
    length = (found[-1] - found[0]) or 1.0
    return [MARGIN + (1 - 2 * MARGIN) * (place - found[0]) / length for place in found]


def _nearest(places: Sequence[float]) -> float:
    """Return the smallest distance of neighbours as a share of the whole."""
    apart = [b - a for a, b in pairwise(places)]
    return min(apart) / ((places[-1] - places[0]) or 1.0)


def labelled(places: Sequence[float], texts: Sequence[str]) -> tuple[Scale, bool]:
    """Return the axis with a label wherever there is room, and whether labels are turned on a phone."""
    ticks: list[tuple[float, str]] = []
    for place, text in zip(places, texts, strict=True):
        if not ticks or place - ticks[-1][0] >= NEAREST:
            ticks.append((place, text))
    apart = [b - a for (a, _), (b, _) in pairwise(ticks)]
    roomy = ROOMY * max(SHORT, *map(len, texts)) / SHORT
    return Scale(0.0, 1.0, tuple(ticks)), min(apart, default=1.0) < roomy


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
