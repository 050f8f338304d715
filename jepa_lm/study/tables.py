"""Tables of a report as plain text, so that the HTML and the Markdown have the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from jepa_lm.study import formatting as words
from jepa_lm.study import statistics
from jepa_lm.study.arm_result import ArmResult, seed_order
from jepa_lm.study.arms import ABSENT
from jepa_lm.study.diagnostics import DIAGNOSTICS
from jepa_lm.study.formatting import NOTHING
from jepa_lm.study.manifest import Comparison
from jepa_lm.study.measure import Estimand
from jepa_lm.study.power import MOST_SEEDS
from jepa_lm.study.results import Results
from jepa_lm.study.runs import Run
from jepa_lm.study.statistics import Effect
from jepa_lm.study.table import Table
from jepa_lm.study.treatments import Treatment, role_of
from jepa_lm.utils.metrics import ABOVE_LAW, LOSSES, METRICS
from jepa_lm.utils.nested import at

SPEED = "tokens per second"
FEW = 6
"""Largest number of comparisons that are shown as a column each."""


def _seeds_needed(effect: Effect) -> str:
    if effect.seeds_needed is None and effect.std:
        return f"> {MOST_SEEDS:,}"
    return words.count(effect.seeds_needed)


RULE = "p of the challenge's rule"
ANYTIME = "p at any time"
EFFECT: dict[str, Callable[[Effect], str]] = {
    "pairs of seeds": lambda e: str(e.n),
    "mean difference, BPB": lambda e: words.signed(e.mean),
    "std of the differences": lambda e: words.score(e.std),
    "95 % interval": lambda e: words.between(e.interval, words.signed),
    "95 % bootstrap": lambda e: words.between(e.bootstrap, words.signed),
    "p, paired t-test": lambda e: words.probability(e.p_paired),
    ANYTIME: lambda e: words.probability(e.p_anytime),
    "p, sign flips": lambda e: words.probability(e.p_flips),
    "p, Welch's test": lambda e: words.probability(e.p_welch),
    RULE: lambda e: words.probability(e.p_rule),
    "p of equivalence": lambda e: words.probability(e.p_equivalent),
    "p of equivalence, long tails": lambda e: words.probability(e.p_tail),
    "seeds needed for what was seen": _seeds_needed,
}
"""Columns of a comparison: heads and formatted numbers."""
COUNTED: dict[str, Callable[[Effect], str]] = {
    "seeds solved": lambda e: "{} of {}".format(*e.solved[:2]) if e.solved else NOTHING,
    "by the control": lambda e: "{} of {}".format(*e.solved[2:]) if e.solved else NOTHING,
    "p, Fisher's exact test": lambda e: words.probability(e.p_fisher),
    "mean difference, BPB": EFFECT["mean difference, BPB"],
}
"""The same where seeds that solved their task are counted."""


def arms(results: Results) -> Table:
    """Return mean, spread and number of seeds of every arm."""
    rows = []
    for arm in results.arms.values():
        steps = [run.summary.get("steps") for run in arm.runs.values()]
        rows.append(
            (
                arm.name,
                arm.group.says or NOTHING,
                f"{len(arm.scores)} of {len(arm.group.runs)}",
                words.score(arm.mean),
                words.score(arm.std),
                words.between(arm.interval),
                words.score(_mean(arm.nll.values())),
                words.score(_mean(_above_law(arm))),
                words.count(_mean(s for s in steps if s is not None)),
            )
        )
    unit = results.measure.unit
    heads = ("seeds", f"{unit}, mean", "std", "95 % interval", "nats per token", ABOVE_LAW, "steps")
    return Table(("arm", "what it is", *heads), tuple(rows), words=2).without_empty()


def _above_law(arm: ArmResult) -> list[float]:
    """Return the nats above the law's own score of the runs whose law is known."""
    floors = {seed: run.floor for seed, run in arm.runs.items()}
    return [nats - floor for seed, nats in arm.nll.items() if (floor := floors[seed]) is not None]


def shares(results: Results) -> Table:
    """Return mean and standard deviation of all that validations of rows measure beside the loss, by arm."""
    metrics = [metric for metric in METRICS if metric not in LOSSES]
    rows = []
    for arm in results.arms.values():
        told = []
        for metric in metrics:
            found = [x for run in arm.runs.values() if (x := run.score(metric)) is not None]
            spread = f" ± {words.score(float(np.std(found, ddof=1)))}" if len(found) > 1 else ""
            told.append(f"{words.score(_mean(found))}{spread}")
        rows.append((arm.name, *told))
    heads = (METRICS[metric].says for metric in metrics)
    return Table(("arm", *heads), tuple(rows)).without_empty()


def estimands(results: Results) -> Table:
    """Return every difference at the budget and at the best of the validations within it."""
    rows = []
    for treatment in results.treatments:
        for against in treatment.against:
            arms = (treatment.arm, against.control)
            told = []
            for estimand in get_args(Estimand):
                measure = replace(results.measure, estimand=estimand)
                mine, theirs = (_at(arm.under(measure), against.effect.seeds) for arm in arms)
                effect = statistics.effect(mine, theirs, resamples=0)
                told += [words.signed(effect.mean), words.between(effect.interval, words.signed)]
            rows.append((treatment.arm.name, against.control.name, *told))
    heads = ("at the budget", "95 % interval", "at the best", "95 % interval of it")
    return Table(("treatment", "control", *heads), tuple(rows), words=2)


def _at(arm: ArmResult, seeds: Iterable[str]) -> dict[str, float]:
    """Return the scores of an arm at these seeds, which take part in the verdict."""
    return {seed: arm.scores[seed] for seed in seeds if seed in arm.scores}


def _unit(treatments: Sequence[Treatment]) -> str:
    return treatments[0].arm.measure.unit if treatments else "BPB"


def seeds(results: Results) -> Table:
    """Return the score of every run, which leads to the run."""
    known = {seed for arm in results.arms.values() for seed in arm.group.runs}
    order = sorted(known, key=seed_order)
    rows = [
        (arm.name, *(words.score(arm.scores.get(seed)) for seed in order))
        for arm in results.arms.values()
    ]
    links = {
        (row, 1 + order.index(seed)): address
        for row, arm in enumerate(results.arms.values())
        for seed, folder in arm.group.runs.items()
        if (address := results.address(folder)) is not None
    }
    return Table(("arm", *(f"seed {seed}" for seed in order)), tuple(rows), links=links)


def effects(treatments: Sequence[Treatment]) -> Table:
    """Return every difference with its intervals and p-values, as columns if there are few of them."""
    compared = [(t.arm.name, against) for t in treatments for against in t.against]
    # A placebo may have several treatments.
    placebos = {t.placebo.comparison.of: t.placebo for t in treatments if t.placebo is not None}
    compared += placebos.items()
    shown = COUNTED if any(a.effect.solved is not None for _, a in compared) else EFFECT
    if treatments and not treatments[0].arm.measure.is_loss:
        shown = {head: say for head, say in shown.items() if head != RULE}
    if all(a.effect.p_anytime is None for _, a in compared):
        shown = {head: say for head, say in shown.items() if head != ANYTIME}
    rows = [
        (
            name,
            against.control.name,
            f"{role_of(against)}{', gate' if against.gate else ''}",
            *(say(against.effect) for say in shown.values()),
        )
        for name, against in compared
    ]
    heads = [head.replace("BPB", _unit(treatments)) for head in shown]
    table = Table(("treatment", "control", "role", *heads), tuple(rows), words=3)
    if len(treatments) != 1 or len(rows) > FEW:
        return table
    turned = zip(table.columns, *rows, strict=True)
    heads = [
        f"{'' if name == treatments[0].arm.name else f'{name} '}against {against.control.name}"
        for name, against in compared
    ]
    return Table(("", *heads), tuple(turned)[2:])


def diagnostics(results: Results) -> Table:
    """Return the means over seeds of the last measurement."""
    found = {
        arm.name: {key: _mean(_jepa(run, key) for run in arm.runs.values()) for key in DIAGNOSTICS}
        for arm in results.arms.values()
    }
    measured = {
        name: row for name, row in found.items() if any(v is not None for v in row.values())
    }
    keys = [key for key in DIAGNOSTICS if any(row[key] is not None for row in measured.values())]
    rows = tuple(
        (name, *(words.figure(row[key]) for key in keys)) for name, row in measured.items()
    )
    return Table(("arm", *(DIAGNOSTICS[key].head for key in keys)), rows)


def cost(results: Results) -> Table:
    """Return time, speed (also relative to the control), memory and compute."""
    control = {t.arm.name: t.main.control for t in results.treatments}
    rows = []
    for arm in results.arms.values():
        against = control.get(arm.name)
        flops = flops_of(arm)
        rows.append(
            (
                arm.name,
                words.count(mean_of(arm, "tokens")),
                f"{seconds:,.1f}" if (seconds := mean_of(arm, "seconds")) is not None else NOTHING,
                words.count(mean_of(arm, "tokens_per_second")),
                words.ratio(None if against is None else cost_ratios(arm, against).get(SPEED)),
                _mebibytes(mean_of(arm, "memory_bytes")),
                NOTHING if flops is None else f"{flops / 1e6:,.2f}",
            )
        )
    heads = (
        "training tokens",
        "seconds",
        "tokens per second",
        "speed, times the control's",
        "peak memory, MiB",
        "million FLOPs per token",
    )
    return Table(("arm", *heads), tuple(rows)).without_empty()


def differences(treatment: Treatment) -> Table:
    """Return the config keys that differ between a treatment and its first control."""
    comparison = treatment.main.comparison
    return Table(
        ("setting", comparison.of, comparison.against), tuple(_settings(comparison)), words=3
    )


def main_differences(treatment: Treatment, most: int) -> tuple[Table, int]:
    """Return a short table of these differences, and the number of settings that it leaves out.

    Keys that only one side has are grouped by their first part: a control without an objective lacks dozens.
    """
    comparison = treatment.main.comparison
    both = {k: v for k, v in comparison.differences.items() if ABSENT not in v}
    lacking: dict[tuple[str, bool], list[str]] = {}
    for key, values in comparison.differences.items():
        if ABSENT in values:
            lacking.setdefault((key.split(".")[0], values[0] == ABSENT), []).append(key)
    rows = _settings(replace(comparison, differences=both))[:most]
    for (first, control_lacks), keys in lacking.items():
        sides = ("set", ABSENT) if control_lacks else (ABSENT, "set")
        rows.append((f"{words.number_of(len(keys), 'setting')} below {first}", *sides))
    return Table(("setting", "treatment", "control"), tuple(rows), words=3), max(
        0, len(both) - most
    )


def other_differences(treatment: Treatment) -> Table:
    """Return the config keys that differ from every control but the first."""
    rows = [
        (a.control.name, *row)
        for a in treatment.against
        if a is not treatment.main
        for row in _settings(a.comparison)
    ]
    return Table(("control", "setting", treatment.arm.name, "its value"), tuple(rows), words=4)


def _settings(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return key, value of the treatment and value of the control."""
    return [
        (key, words.setting(of), words.setting(against))
        for key, (against, of) in comparison.differences.items()
    ]


def mean_of(arm: ArmResult, key: str) -> float | None:
    """Return the mean over runs of a top-level number of summary.json."""
    return _mean(run.summary.get(key) for run in arm.runs.values())


def cost_ratios(arm: ArmResult, control: ArmResult) -> dict[str, float]:
    """Return FLOPs per token, tokens per second and peak GPU memory as ratios to the control's, if known.

    Memory on a CPU is left out: a process grows most in its first job, whichever arm that is.
    """
    sides = {
        "FLOPs per token": (flops_of(arm), flops_of(control)),
        SPEED: (mean_of(arm, "tokens_per_second"), mean_of(control, "tokens_per_second")),
    }
    if all(at(run.config, "trainer", "accelerator") == "gpu" for run in arm.runs.values()):
        sides["peak memory"] = (mean_of(arm, "memory_bytes"), mean_of(control, "memory_bytes"))
    return {name: ours / theirs for name, (ours, theirs) in sides.items() if ours and theirs}


def flops_of(arm: ArmResult) -> float | None:
    """Return the FLOPs per token of model and objective together, or None if not recorded."""
    return _mean(
        sum(found.values())
        for run in arm.runs.values()
        if (found := run.summary.get("flops_per_token"))
    )


def _jepa(run: Run, key: str) -> float | None:
    value = at(run.summary, "jepa", key)
    return value if isinstance(value, int | float) else None


def _mebibytes(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 2**20:,.0f}"


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
