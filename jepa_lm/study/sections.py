"""The sections that follow the verdict in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jepa_lm.study import figures, figures_over_steps, tables
from jepa_lm.study import formatting as words
from jepa_lm.study.figure_styles import Panel, Style
from jepa_lm.study.results import Results
from jepa_lm.study.table import Table


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    title: str
    says: str = ""
    panels: tuple[Panel, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    """Captions and tables."""
    notes: tuple[str, ...] = ()
    legend: tuple[Style, ...] = ()
    """Styles of the lines in its figures."""


def sections(results: Results, look: Mapping[str, Style]) -> list[Section]:
    """Return the sections that have content, in order."""
    found = [
        _arms(results),
        _effects(results),
        _weights(results),
        _curves(results, look),
        _diagnostics(results, look),
        _cost(results),
        _differences(results),
        _failures(results),
        _records(results),
    ]
    return [s for s in found if s.panels or s.notes or any(table.rows for _, table in s.tables)]


def _arms(results: Results) -> Section:
    return Section(
        "Arms",
        "Bits per byte (BPB) of the final validation; lower is better. Mean, standard deviation and 95 % "
        "t interval are over seeds.",
        tables=(
            ("Scores by arm", tables.arms(results)),
            ("BPB of every run", tables.seeds(results)),
        ),
    )


def _effects(results: Results) -> Section:
    return Section(
        "Differences",
        "Treatment minus control in BPB, at equal seeds; below zero, the treatment is better. Each interval "
        "is for one comparison alone; verdicts go by p after Holm, and the smallest detectable difference "
        "and the seeds needed are computed with Holm's correction.",
        tables=(("Differences with their uncertainty", tables.effects(results.treatments)),),
    )


def _curves(results: Results, look: Mapping[str, Style]) -> Section:
    metric, panels = figures_over_steps.score_curves(results, look)
    return Section(
        "BPB over steps",
        f"{metric.says[0].upper()}{metric.says[1:]} ({metric.column} of metrics.csv) of finished runs, at "
        "the steps that all seeds of an arm have. Lines are means over seeds. Bands of scores span the "
        "lowest to the highest seed. Differences are taken seed by seed; their bands are 95 % t intervals of "
        "the mean and need two seeds. Scores of the first fifth of the run may lie above the axis.",
        panels=tuple(panels),
        legend=_legend(panels, look),
    )


def _weights(results: Results) -> Section:
    return Section(
        "BPB against weight",
        "Circles: seeds. Diamonds: means. Bars: 95 % t interval of the mean.",
        tuple(figures.weights(results)),
    )


def _diagnostics(results: Results, look: Mapping[str, Style]) -> Section:
    panels = figures_over_steps.diagnostics(results, look)
    return Section(
        "Collapse diagnostics",
        "Measured during training on the objective's latents. An effective rank or a standard deviation "
        "near zero is a collapse; R² at or below zero is no better than always predicting the mean target; a "
        "share of exactly zero of the trunk's gradient means that the auxiliary loss trains nothing that "
        "ships. Line: mean over seeds. Band: lowest to highest seed.",
        tuple(panels),
        (("Last measurement, mean over seeds", tables.diagnostics(results)),),
        legend=_legend(panels, look),
    )


def _cost(results: Results) -> Section:
    return Section(
        "Cost",
        "Means over finished runs. Seconds are of training, without validation and compilation; seconds and "
        "speed depend on what else the machine was doing. On a CPU, memory is the growth of the process, "
        "which is largest in its first job.",
        tables=(("Cost by arm", tables.cost(results)),),
    )


def _differences(results: Results) -> Section:
    found = []
    for treatment in results.treatments:
        name, control = treatment.arm.name, treatment.main.control.name
        found.append((f"{name} against {control}", tables.differences(treatment)))
        found.append((f"{name} against its other controls", tables.other_differences(treatment)))
    notes = tuple(
        f"{t.arm.name} and {a.control.name} have equal configs."
        for t in results.treatments
        for a in t.against
        if not a.comparison.differences
    )
    return Section(
        "How the configs differ",
        "Keys of the resolved configs that differ, as compared before training started.",
        tables=tuple((caption, table) for caption, table in found if table.rows),
        notes=notes,
    )


def _failures(results: Results) -> Section:
    skipped = tuple(
        f"{treatment}. {words.not_applicable(reasons)}"
        for treatment, reasons in results.manifest.not_applicable.items()
        if reasons
    )
    every = () if results.failures else ("Every planned run has finished.",)
    return Section(
        "Failures and unfinished runs",
        tables=(("Runs without a score", tables.failures(results)),),
        notes=(*every, *skipped),
    )


def _records(results: Results) -> Section:
    same = tuple(
        f"{identity.says}: the records of {' and '.join(identity.runs)} {found}."
        for identity, found in results.identities
    )
    return Section(
        "Versions and records",
        "From each run's summary.json and config.json.",
        tables=(
            ("What the runs recorded", tables.records(results)),
            ("Configs, by hash", tables.hashes(results)),
        ),
        notes=same,
    )


def _legend(panels: Sequence[Panel], look: Mapping[str, Style]) -> tuple[Style, ...]:
    shown = {name for panel in panels for name in panel.arms}
    return tuple(style for name, style in look.items() if name in shown)
