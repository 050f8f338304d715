"""Write report.html, one file that needs no network, and report.md with the same text and numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jepa_lm.study import doubts, figures, figures_over_compute, registration, tables
from jepa_lm.study import formatting as words
from jepa_lm.study.against_plan import UNCHECKED
from jepa_lm.study.chart import Style
from jepa_lm.study.figure_styles import styles
from jepa_lm.study.results import Results, collect
from jepa_lm.study.roles import BASELINES
from jepa_lm.study.sections import sections
from jepa_lm.study.sentences import numbers, p_value
from jepa_lm.study.templates import TIED, environment
from jepa_lm.study.treatments import NOT_COMPARABLE, Treatment
from jepa_lm.study.trend import Trend
from jepa_lm.study.verdict import standing
from jepa_lm.utils.errors import warn
from jepa_lm.utils.files import write_text
from jepa_lm.utils.paths import PAGE_FILE
from jepa_lm.utils.quoting import shell

HTML, MARKDOWN = "report.html", "report.md"
LONG = 20
"""Number of arms from which on a page has a list of contents, tables that can be sorted, and folded parts."""
MOST_SHOWN = 6
"""Largest number of small figures, or of rows of a second table, that such a page shows unfolded."""
SHOWN_FIRST = 8
"""Number of settings shown beside a verdict; the others are further down the page."""
NORMALITY = 6
"""Number of seeds from which on a test without the assumption of normality can reach p < 0.05."""
IF_COMPARABLE = "If the arms were comparable, the scores would say:"
OUTCOMES = {
    "helps": "{} helps.",
    "better, no placebo": "{} is better than its control, but no placebo was run.",
    "hurts": "{} hurts.",
    "unstable": "{} is unstable: some runs diverged or failed.",
    "equivalent": "{} is equivalent to its control.",
    "no difference shown": "{}: no difference shown.",
    "too few seeds": "{}: too few seeds for a verdict.",
    NOT_COMPARABLE: "{}: no verdict, because its arms are not comparable.",
}
"""Headlines by verdict."""
TRENDS = {
    "grows": "The effect of {} grows with compute.",
    "vanishes": "The effect of {} shrinks with compute.",
    "changes sign": "The effect of {} changes sign with compute.",
    "shifts": "The effect of {} shifts with compute.",
    "no trend shown": "{}: no trend with compute shown.",
    "too few seeds": "{}: too few seeds for a trend.",
    "unstable": "{}: no trend, because some runs diverged or failed.",
    NOT_COMPARABLE: "{}: no trend, because its rungs are not comparable.",
}
"""Headlines of a study with a ladder, by the word on its trend."""
TONES = {"helps": "good", "hurts": "bad", "unstable": "bad", NOT_COMPARABLE: "bad"}
"""CSS classes of a verdict's badge."""


def _write(results: Results) -> Path:
    context = _context(results)
    for name in (MARKDOWN, HTML):
        text = environment(html=name == HTML).get_template(f"{name}.j2").render(context)
        write_text(results.folder / name, text)
    return results.folder / HTML


def tell(folder: Path, say: Callable[[str], None]) -> Path:
    """Write the report and print its verdicts, one line each.

    Returns:
        The HTML file.

    Raises:
        UserError: the folder has no study.json.
    """
    results = collect(folder)
    say(headline(results))
    for trend in results.trends:
        say(f"{trend.label} ({trend.word}): {_told(doubts.of_trend(trend), trend.sentence)}")
        for text in trend.apart:
            warn(f"{trend.label}: no trend is told: {text}")
    for treatment in results.treatments:
        name = f"{treatment.arm.label} ({treatment.word}): " if len(results.treatments) > 1 else ""
        say(f"{name}{_told(doubts.of_treatment(treatment) if name else '', treatment.sentence)}")
        for text in treatment.apart:
            warn(f"{treatment.arm.name} and its controls are not comparable: {text}")
    for text in (*results.apart, *results.warnings):
        warn(text)
    if results.failures:
        warn(f"{len(results.failures)} of {len(results.runs)} planned runs have no score")
    return _write(results)


def headline(results: Results) -> str:
    """Return the outcome in one sentence."""
    treatments = results.treatments
    if not treatments:
        return (
            "No verdict: nothing here is compared with a control. Include jepa.weight=0 in the sweep, with "
            "the same seeds, to get one."
        )
    if len(treatments) == 1:
        word = treatments[0].word
        outcome = OUTCOMES.get(word, "{}: " + word + ".").format(treatments[0].arm.label)
        return _told(outcome, doubts.of_treatment(treatments[0]), _exploratory(results))
    found = Counter(t.word for t in treatments)
    counted = "; ".join(
        f"{word}: {amount}".replace(" ", TIED) for word, amount in found.most_common()
    )
    if results.trends:
        outcome = f"{_trends(results.trends)} At the rungs: {counted}."
    else:
        counted = f"{counted[0].upper()}{counted[1:]}"
        outcome = f"{len(treatments)} treatments, each against its controls. {counted}."
    return _told(outcome, doubts.of_several(treatments), _exploratory(results))


def _told(*sentences: str) -> str:
    """Return sentences as a text, without those that are empty."""
    return " ".join(filter(None, sentences))


def _trends(trends: Sequence[Trend]) -> str:
    """Return the words on the trends as sentences."""
    if len(trends) == 1:
        return TRENDS[trends[0].word].format(trends[0].label)
    found = Counter(trend.word for trend in trends)
    words_of = "; ".join(f"{word}: {amount}" for word, amount in found.most_common())
    return f"Trends of {len(trends)} treatments with compute: {words_of}."


def _exploratory(results: Results) -> str:
    """Return why the verdicts are not the registered ones, as a sentence; may be empty."""
    for treatment in results.treatments:
        arms = treatment.with_a_say
        over = {name: {*arm.runs, *arm.failed} for name, arm in arms.items()}
        if found := registration.exploratory(results.manifest, over):
            return found
    return ""


def _context(results: Results) -> dict[str, Any]:
    look = styles(results)
    alone = len(results.treatments) == 1
    verdicts = [(word := t.word, TONES.get(word, "plain")) for t in results.treatments]
    return {
        "name": results.manifest.name,
        "kind": results.manifest.kind,
        "not_comparable": "These arms are not comparable",
        "cautious": "Read before you trust this",
        "built_from": "from study.json and the runs' own records by",
        "command": shell(results.manifest.command),
        "built": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "headline": headline(results),
        "cards": [_card(t, look, alone) for t in results.treatments],
        "trends": [
            _trend(trend, colour)
            for trend, colour in zip(
                results.trends, figures_over_compute.colours(results.trends), strict=True
            )
        ],
        "alone": alone,
        "most_shown": MOST_SHOWN,
        "long": len(results.arms) >= LONG,
        "overview": None if alone else figures.overview(results.treatments, look, verdicts),
        "apart": list(results.apart),
        "notices": _notices(results),
        "warnings": list(results.warnings),
        "basis": _basis(results),
        "sections": sections(results, look),
        "pages": _pages(results),
        "html": HTML,
    }


def _pages(results: Results) -> list[tuple[str, str]]:
    """Return the runs that keep a page of their own, with its address."""
    found = ((name, results.address(name)) for name in results.runs)
    return [(name, at) for name, at in found if at is not None and at.endswith(f"/{PAGE_FILE}")]


def _card(treatment: Treatment, look: dict[str, Style], alone: bool) -> dict[str, Any]:
    """Return a verdict with its evidence, for the template."""
    drawn = alone or len(treatment.against) > 1  # else the overview of all treatments shows it
    word = treatment.word
    main = treatment.main
    first, more = tables.main_differences(treatment, SHOWN_FIRST)
    if_comparable = IF_COMPARABLE if treatment.apart else ""
    return {
        "name": treatment.arm.label,
        "word": word,
        "tone": TONES.get(word, "plain"),
        "sentence": _told(
            "" if alone else doubts.of_treatment(treatment), if_comparable, treatment.sentence
        ),
        "apart": list(treatment.apart),
        "against": main.control.name,
        "numbers": _numbers(treatment),
        "differences": first,
        "more": more,
        "panel": figures.effects(treatment, look) if drawn else None,
        "not_applicable": words.not_applicable(treatment.not_applicable),
    }


def _trend(trend: Trend, colour: str) -> dict[str, Any]:
    """Return a trend with its evidence, for the template."""
    grows = ("good" if trend.slope.gains else "bad") if trend.word == "grows" else "plain"
    return {
        "name": trend.label,
        "word": trend.word,
        "tone": TONES.get(trend.word, grows),
        "apart": list(trend.apart),
        "sentence": _told(
            doubts.of_trend(trend), IF_COMPARABLE if trend.apart else "", trend.sentence
        ),
        "panel": figures_over_compute.effect(trend, colour, wide=True),
    }


def _numbers(treatment: Treatment) -> list[str]:
    """Return what the verdict's sentence leaves out: the correction, a harmful placebo, and the cost."""
    adjusted = treatment.adjusted
    corrected = (
        [
            f"After Holm's correction over {adjusted.treatments} treatments: {p_value(adjusted.difference)}."
        ]
        if adjusted and adjusted.treatments > 1 and adjusted.difference is not None
        else []
    )
    harmful = []
    if treatment.placebo is not None and standing(treatment.placebo.effect) == "worse":
        harmful.append(
            f"The placebo itself is worse than {BASELINES[treatment.placebo.comparison.role]} "
            f"({numbers(treatment.placebo.effect)}), so it is easily beaten."
        )
    ratios = tables.cost_ratios(treatment.arm, treatment.main.control)
    told = ", ".join(f"{words.ratio(ratio)} times the {name}" for name, ratio in ratios.items())
    cost = [f"Cost relative to the control: {told}."] if told else []
    return [*corrected, *harmful, *cost]


def _notices(results: Results) -> list[str]:
    """Return notices on missing runs, on what the plan leaves out, and on multiple comparisons."""
    missing, planned = len(results.failures), len(results.runs)
    said = list(results.manifest.notes)
    if missing:
        runs = f"{missing} of {words.number_of(planned, 'planned run')}"
        said.append(f"Without a score, and listed only under the failures: {runs}.")
    if len(results.treatments) > 1:
        said.append(
            f"Each of {len(results.treatments)} treatments may look good by chance, so Holm's correction "
            "goes over them: a verdict's p is the largest of its tests, times up to the number of treatments."
        )
    if results.trends:
        said.append(
            "This study is about trends, and their words are corrected over the trends alone; those at the "
            "rungs are corrected over all rungs."
        )
    asked = [a.effect for t in results.treatments for a in t.against if a.gate or a is t.main]
    tested = [e.n for e in asked if e.p_flips is not None and e.solved is None]
    seeds = min(tested, default=NORMALITY)
    said += [
        f"Not verified: {identity.says}; their records {found}."
        for identity, found in results.identities
        if found.startswith(UNCHECKED)
    ]
    if seeds < NORMALITY:
        said.append(
            f"With {seeds} seeds, verdicts rest on differences being normal: without that assumption, by "
            f"flipping signs, no p can be below {2.0 ** (1 - seeds):.2g}."
        )
    return said


def _basis(results: Results) -> list[tuple[str, str]]:
    """Return budget, data and model; the report's conclusions do not extend beyond them."""
    runs = list(results.runs.values())
    return [
        ("Budget", words.budget(runs, results.manifest.match)),
        ("Data", words.data(runs)),
        ("Model", words.model(runs)),
        *(("Registration", text) for text in registration.told(results.manifest)),
        ("Margin", f"Differences of up to {results.measure.margin_says} count as none."),
        (
            "Scope",
            "These results hold for these budgets, this data and these models only, and say nothing about "
            "larger scale."
            if results.trends
            else "These results hold for this budget, this data and this model only.",
        ),
    ]
