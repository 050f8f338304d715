"""The sections that follow the verdict in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jepa_lm.study import (
    figures,
    figures_over_compute,
    figures_over_steps,
    record_tables,
    tables,
    trend_tables,
)
from jepa_lm.study import formatting as words
from jepa_lm.study.chart import Panel, Style
from jepa_lm.study.curves import VALIDATED_OFTEN
from jepa_lm.study.figure_styles import DISTINCT
from jepa_lm.study.results import Results
from jepa_lm.study.sequential import level_of
from jepa_lm.study.solved import SOLVED
from jepa_lm.study.statistics import RULE_ALPHA, RULE_NATS
from jepa_lm.study.table import Table

SAMPLED = 600
"""Characters of a sample."""
EXPLAINED = (
    "The challenge's rule: a new record of the parameter-golf challenge must be better than the last one by "
    f"at least {RULE_NATS:g} nats per token, at p < {RULE_ALPHA:g}. Its p is of a one-sided paired t-test of "
    f"the nats per token, whose null hypothesis is a gain of {RULE_NATS:g} or less: a small p means that the "
    "treatment gains more than that on its control."
)

LAWS = "Power laws: loss = E + A u^-alpha, where u is compute relative to the smallest rung"
LAWS_EXPLAINED = (
    "Least squares on the means over seeds, with E at 0 or above. Intervals are of resampled seeds and too "
    "narrow for a handful of them. The laws describe these rungs and forecast nothing."
)


@dataclass(frozen=True)
class Sample:
    """Text that a model wrote."""

    arm: str
    seed: str
    text: str
    address: str | None
    """Link to the run."""


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    title: str
    says: str = ""
    panels: tuple[Panel, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    """Captions and tables."""
    notes: tuple[str, ...] = ()
    explained: str = ""
    """What a word in the tables means, below them."""
    samples: tuple[Sample, ...] = ()
    legend: tuple[tuple[Style, str], ...] = ()
    """Styles of the lines of figures that share them; other figures have a key of their own."""
    aside: bool = False
    """On a long page, it is folded."""

    @property
    def address(self) -> str:
        """Name of the section in links."""
        return self.title.lower().replace(" ", "-")


def sections(results: Results, look: Mapping[str, Style]) -> list[Section]:
    """Return the sections that have content, in order."""
    found = [
        _arms(results),
        _effects(results),
        _scale(results),
        _weights(results),
        _curves(results, look),
        _diagnostics(results, look),
        _samples(results),
        _cost(results),
        _tuning(results),
        _differences(results),
        _failures(results),
        _records(results),
    ]
    return [
        s
        for s in found
        if s.panels or s.notes or s.samples or any(table.rows for _, table in s.tables)
    ]


def _arms(results: Results) -> Section:
    return Section(
        "Arms",
        f"{_says(results)}; {results.measure.better} is better. Mean, standard deviation and 95 % t interval "
        f"are over seeds. {results.measure.warns}".strip(),
        tables=(
            ("Scores by arm", tables.arms(results)),
            ("Shares at the final validation, mean ± standard deviation", tables.shares(results)),
            (f"{results.measure.unit} of every run", tables.seeds(results)),
        ),
    )


def _says(results: Results) -> str:
    """Say what is measured, with the short name of its unit."""
    said = results.measure.says
    return (
        said.replace("bits per byte", "Bits per byte (BPB)", 1)[:1].upper()
        + (said.replace("bits per byte", "Bits per byte (BPB)", 1)[1:])
    )


def _effects(results: Results) -> Section:
    measure = results.measure
    judged = (
        f"Seeds whose share is above {100 * SOLVED:.0f} % are counted as solved, and verdicts go by Fisher's "
        "exact test of the counts, one-sided. "
        if measure.quantity.bimodal
        else "Each interval is for one comparison alone. To help, a treatment must be better than its "
        f"baseline and than every gate, each at p < {level_of(results.manifest.seeds):g}; the other arms "
        "have no say. "
    )
    return Section(
        "Differences",
        f"Treatment minus control in {measure.unit}, at equal seeds; {measure.side} zero, the treatment is "
        f"better. {judged}The verdict is about the {measure.says}. {measure.warns}".strip(),
        tables=(
            ("Differences with their uncertainty", tables.effects(results.treatments)),
            ("At the budget, and at the best within it", tables.estimands(results)),
        ),
        explained=EXPLAINED if results.treatments and measure.is_loss else "",
    )


def _scale(results: Results) -> Section:
    found = results.trends
    panels = (
        figures_over_compute.losses(trend, colour, wide=len(found) == 1)
        for trend, colour in zip(found, figures_over_compute.colours(found), strict=True)
    )
    return Section(
        "Effect against compute",
        "A seed's slope is that of the line through its differences at the rungs, for each tenfold compute; "
        "the mean of the slopes is tested by Student's t. Compute is that of the baseline's run, counted, "
        "without what the objective adds. Diamonds: means. Bars and bands: 95 % intervals.",
        tuple(panel for panel in panels if panel is not None),
        (
            ("Trends", trend_tables.trends(found)),
            ("Rungs", trend_tables.rungs(found)),
            (LAWS, trend_tables.laws(found)),
        ),
        tuple(trend_tables.multipliers(found)),
        explained=LAWS_EXPLAINED if any(trend.laws for trend in found) else "",
    )


def _curves(results: Results, look: Mapping[str, Style]) -> Section:
    metric, panels = figures_over_steps.score_curves(results, look)
    validated = metric.column.startswith("val/")
    why = (
        ""
        if validated
        else "These are scores of training batches, because some run was validated fewer than "
        f"{VALIDATED_OFTEN} times. "
    )
    return Section(
        f"{'Validation' if validated else 'Training'} {results.measure.unit} over steps",
        f"{metric.says[0].upper()}{metric.says[1:]} ({metric.column} of metrics.csv) of finished runs, at "
        f"the steps that all seeds of an arm have. {why}Bold lines are means over seeds; thin lines are the "
        f"seeds, in figures of at most {figures_over_steps.FEW} arms. Differences are taken seed by seed; "
        "their bands are 95 % t intervals of the mean and need two seeds. Scores of the first fifth of a run "
        f"may lie above the axis. Numbers beside names are means at the end.{_repeated(look)}",
        panels=tuple(panels),
    )


def _repeated(look: Mapping[str, Style]) -> str:
    """Say that styles repeat, if they do."""
    if len({(style.colour, style.dash) for style in look.values()}) == len(look):
        return ""
    return (
        f" There are only {DISTINCT} line styles for {len(look)} arms, so some have the same one; the key of "
        "each figure, and a pointer over a line, give the names."
    )


def _weights(results: Results) -> Section:
    return Section(
        f"{results.measure.unit} against weight",
        "Circles: seeds. Diamonds: means. Bars: 95 % t interval of the mean.",
        tuple(figures.weights(results)),
    )


def _diagnostics(results: Results, look: Mapping[str, Style]) -> Section:
    panels = figures_over_steps.diagnostics(results, look)
    return Section(
        "Collapse diagnostics",
        "Measured during training on the objective's latents. A collapse leaves an effective rank near one, "
        "or a small part of an earlier one; a spread near zero; or a standard deviation far below an earlier "
        "one. A run that set off the alarm is among the warnings above. R² at or below zero is no better "
        "than always predicting the mean target; a share of exactly zero of the trunk's gradient means that "
        "the auxiliary loss trains nothing that ships. Bold lines: means over seeds. Thin lines: seeds, in "
        "figures of at most "
        f"{figures_over_steps.FEW} arms.",
        tuple(panels),
        (("Last measurement, mean over seeds", tables.diagnostics(results)),),
        legend=_legend(panels, look),
    )


def _samples(results: Results) -> Section:
    found = []
    for arm in results.arms.values():
        for seed, run in arm.runs.items():
            if text := run.sample(SAMPLED):
                address = results.address(arm.group.runs[seed])
                found.append(Sample(arm.name, seed, text, address))
                break
    return Section(
        "Samples of text",
        "The beginning of what a model of each arm wrote at the end of its training, from sample.txt of the "
        "first seed that has one. A sample is an impression and no measurement.",
        samples=tuple(found),
        aside=True,
    )


def _cost(results: Results) -> Section:
    return Section(
        "Cost",
        "Means over finished runs. Seconds are of training, without validation and compilation; seconds and "
        "speed depend on what else the machine was doing. On a CPU, memory is the growth of the process, "
        "which is largest in its first job.",
        tables=(("Cost by arm", tables.cost(results)),),
    )


def _tuning(results: Results) -> Section:
    return Section(
        "Tuning",
        "Before the study, every arm had the same draws of the same settings, scored on text that is neither "
        f"training nor validation: mean {results.measure.unit} there. Each arm then ran with its best draw, "
        "on other seeds. The draws have a report of their own, tuning/report.html.",
        tables=(("Best draw of each arm", record_tables.tuning(results)),),
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
        aside=True,
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
        tables=(("Runs without a score", record_tables.failures(results)),),
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
            ("What the runs recorded", record_tables.records(results)),
            ("Configs, by hash", record_tables.hashes(results)),
        ),
        notes=same,
        aside=True,
    )


def _legend(panels: Sequence[Panel], look: Mapping[str, Style]) -> tuple[tuple[Style, str], ...]:
    shown = {name for panel in panels for name in panel.arms}
    return tuple((style, "") for name, style in look.items() if name in shown)
