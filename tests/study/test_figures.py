"""Figures: in the page's colours, with units, their numbers in words; they draw what the runs recorded."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import jepa_lm.study
from jepa_lm.study import figures, figures_over_steps
from jepa_lm.study.chart import INK, SERIES, Chart, Forest, around
from jepa_lm.study.figure_styles import styles
from jepa_lm.study.results import collect
from jepa_lm.study.sections import sections
from jepa_lm.study.templates import environment
from tests.study.pages import Element, read
from tests.study.sweeps import paired, study

CSS = (Path(jepa_lm.study.__file__).parent / "report.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"(--[\w-]+): (#\w+);", block))
    for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
)
WEIGHTS = (0.0, 0.03, 0.1, 1.0)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four weights of two objectives, with five seeds each."""
    scores, settings, against, runs = {}, {}, {}, {}
    for objective in ("vicreg", "$lewm$"):
        for i, weight in enumerate(WEIGHTS):
            name = f"objective={objective} jepa.weight={weight:g}"
            scores[name] = {str(s): 1.7 + 0.01 * i + 0.001 * s**2 for s in range(1, 6)}
            settings[name] = {"objective": objective, "jepa.weight": f"{weight:g}"}
            runs[name] = {"weight": weight, "objective": objective}
            if weight:
                against[name] = {"weight_0": f"objective={objective} jepa.weight=0"}
    folder = tmp_path_factory.mktemp("sweep")
    return collect(
        study(folder, scores, settings=settings, against=against, runs=runs, kind="sweep")
    )


@pytest.fixture(scope="module")
def panels(sweep):
    look = styles(sweep)
    verdicts = [("helps", "good")] * len(sweep.treatments)
    return [
        figures.overview(sweep.treatments, look, verdicts),
        figures.effects(sweep.treatments[0], look),
        *figures.weights(sweep),
        *figures_over_steps.score_curves(sweep, look)[1],
        *figures_over_steps.diagnostics(sweep, look),
    ]


MACROS = '{% from "chart.html.j2" import chart, forest with context %}'


def drawn(panel) -> Element:
    """Return the element that the page shows for a figure."""
    macro = "chart" if isinstance(panel.drawn, Chart) else "forest"
    template = environment(html=True).from_string(f"{MACROS}{{{{ {macro}(figure) }}}}")
    return read(template.render(figure=panel.drawn)).one("div", role="img")


def texts(panel) -> list[str]:
    return [e.text for e in drawn(panel).all("*") if e.tag in ("p", "span") and e.text]


def test_colours_are_the_pages_own(panels):
    used = set()
    for panel in panels:
        styled = " ".join(e.attributes.get("style", "") for e in drawn(panel).all("*"))
        assert "#" not in styled
        used |= set(re.findall(r"var\((--[\w-]+)\)", styled))
    assert used == {"--ink", *(f"--series-{i}" for i in range(6))}
    assert used <= LIGHT.keys()
    assert LIGHT.keys() == DARK.keys()


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, by WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(theme):
    def contrast(name: str, ground: str) -> float:
        pair = sorted((luminance(theme[name]), luminance(theme[ground])))
        return (pair[1] + 0.05) / (pair[0] + 0.05)

    for name in ("--ink", "--muted", "--good", "--bad", "--warn"):
        assert contrast(name, "--paper") >= 4.5, name
    for ground in ("--panel", "--alarm", "--caution"):
        assert contrast("--ink", ground) >= 7, ground
    for i in range(6):
        assert contrast(f"--series-{i}", "--paper") >= 3, i


def test_axes_have_units(panels):
    for panel in panels:
        said = " ".join(texts(panel))
        assert "BPB" in said or "jepa/" in said
        assert "optimizer steps" in said or "difference in BPB" in said or "jepa.weight" in said
    assert "bits per byte" in " ".join(texts(panels[2]))


def test_a_reader_who_sees_no_figure_gets_its_numbers(panels, sweep):
    overview, effects, weights, _, *others = panels
    for panel in (overview, effects):
        assert f": {sweep.treatments[0].main.effect.mean:+.4f} BPB, 5 seeds" in panel.drawn.says
    arm = sweep.arms["objective=vicreg jepa.weight=0.03"]
    assert f"weight 0.03: {arm.mean:.4f} [{arm.interval[0]:.4f}, " in weights.drawn.says
    for panel in others:
        for arm in panel.arms:
            assert re.search(rf"{re.escape(arm)}: [+-]?\d[\d.]* \[", panel.drawn.says)
    assert drawn(overview).attributes["aria-label"] == overview.drawn.says


def test_a_difference_has_its_interval_in_the_text_and_in_the_figure(tmp_path):
    folder = study(tmp_path, paired(1.7, -0.01), against={"treatment": {"weight_0": "control"}})
    results = collect(folder)
    effect = results.treatments[0].main.effect
    panel = figures.effects(results.treatments[0], styles(results))
    low, high = effect.interval
    assert f": {effect.mean:+.4f} [{low:+.4f}, {high:+.4f}] BPB, 5 seeds" in panel.drawn.says
    shown = drawn(panel).all("i")
    bar = next(mark for mark in shown if mark.attributes["class"] == "bar")
    assert bar.attributes["style"] == panel.drawn.span(effect.interval)
    assert sum(mark.attributes["class"] == "seed" for mark in shown) == 5


def test_text_stays_text_and_dollars_stay_dollars(panels):
    assert "objective=$lewm$ jepa.weight=0.03 helps" in texts(panels[0])


def test_marks_are_where_the_numbers_are(panels, sweep):
    forest = panels[0].drawn
    assert isinstance(forest, Forest)
    (zero,) = (at for at, text in forest.across.ticks if text == "0")
    for row, treatment in zip(forest.rows, sweep.treatments, strict=True):
        assert row.mean == treatment.main.effect.mean
        assert (forest.across(row.mean) < zero) == (row.mean < 0)
        assert forest.place(row.mean) == f"left: {100 * forest.across(row.mean):.2f}%"
    weights = panels[2].drawn
    line = weights.path(weights.lines[0].points).split()
    places = [tuple(map(int, point.split(","))) for point in line]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert all(0 <= n <= 1000 for place in places for n in place)


def test_weights_have_a_panel_for_each_objective_and_a_tick_for_each_weight(sweep):
    made = figures.weights(sweep)
    assert [panel.title for panel in made] == ["objective=vicreg", "objective=$lewm$"]
    for panel in made:
        assert [text for _, text in panel.drawn.across.ticks] == ["0", "0.03", "0.1", "1"]


@pytest.mark.parametrize(
    "at",
    [
        [0.05 * i for i in range(11)],
        [0.05 * i for i in range(21)],
        [0, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 0.5, 1],
        [0, 1e-4, 1e-3, 1e-2, 0.1, 1],
        [-1, 0, 1],
    ],
    ids=["eleven", "twenty-one", "mixed", "powers", "negative"],
)
def test_labels_of_many_weights_have_room(at):
    """A turned label is about 12 pixels wide, an upright one up to 40; a phone has 285, a desktop 1,250."""
    places = figures._places(at)
    axis, turned = figures.labelled(places, [f"{w:g}" for w in at])
    assert [text for _, text in axis.ticks] == [f"{w:g}" for w in at]
    apart = np.diff([place for place, _ in axis.ticks])
    assert apart.min() * 285 >= (12 if turned else 30)
    assert apart.min() * 1250 >= 45
    assert 0 < places[0] < places[-1] < 1


def test_a_weight_too_near_to_another_keeps_its_mark_and_loses_its_label():
    places = figures._places([0, 0.1, 0.1001, 0.2])
    axis, _ = figures.labelled(places, ["0", "0.1", "0.1001", "0.2"])
    assert [text for _, text in axis.ticks] == ["0", "0.1", "0.2"]
    assert len(set(places)) == 4


def test_one_weight_is_no_sweep(tmp_path):
    settings = {"treatment": {"jepa.weight": "0.1"}}
    assert figures.weights(collect(study(tmp_path, paired(1.7, 0), settings=settings))) == []


def test_controls_have_the_colour_of_text_and_treatments_one_each(sweep):
    look = styles(sweep)
    colours = {name: style.colour for name, style in look.items()}
    controls = [name for name in colours if name.endswith("weight=0")]
    assert {colours[name] for name in controls} == {INK}
    assert len({look[name].dash for name in controls}) == 2
    treated = [colours[name] for name in colours if name not in controls]
    assert sorted(treated) == list(SERIES)


def test_nothing_recorded_is_no_figure(tmp_path):
    scores = paired(1.7, -0.01)
    results = collect(study(tmp_path, scores, against={"treatment": {"weight_0": "control"}}))
    for run in results.runs.values():
        (run.folder / "metrics.csv").unlink()
    results = collect(tmp_path)
    look = styles(results)
    assert figures_over_steps.score_curves(results, look)[1] == []
    assert figures_over_steps.diagnostics(results, look) == []


def test_seeds_are_thin_lines_below_their_mean(tmp_path):
    scores = {"a": {"1": 1.7, "2": 1.8}, "b": {"1": 1.6}}
    results = collect(study(tmp_path, scores, kind="sweep"))
    (panel,) = figures_over_steps.score_curves(results, styles(results))[1]
    assert panel.title == "Training BPB: all arms"
    assert panel.drawn.label.startswith("training BPB")
    lines = {line.style.name: line for line in panel.drawn.lines}
    assert [len(line.seeds) for line in lines.values()] == [2, 0]
    found = np.array(lines["a"].seeds)[:, :, 1]
    np.testing.assert_allclose([y for _, y in lines["a"].points], found.mean(0))
    shown = drawn(panel)
    assert len(shown.all("polyline", class_="thin")) == 2
    assert len(shown.all("polyline", class_="line")) == 2


def test_validation_and_training_are_told_apart(tmp_path):
    folder = study(tmp_path, paired(1.7, -0.01), against={"treatment": {"weight_0": "control"}})
    for validations, name in ((2, "Training"), (3, "Validation")):
        for run in collect(folder).runs.values():
            rows = [f"{100 * i},{2 - i / 10}," for i in range(validations)]
            rows += [f"{50 * i},,{3 - i / 10}" for i in range(1, 9)]
            (run.folder / "metrics.csv").write_text("\n".join(["step,val/bpb,train/bpb", *rows]))
        results = collect(folder)
        look = styles(results)
        (section,) = (s for s in sections(results, look) if "BPB over steps" in s.title)
        assert section.title == f"{name} BPB over steps"
        assert ("fewer than 3 times" in section.says) == (name == "Training")
        for panel in section.panels:
            assert name.lower() in panel.drawn.label


@pytest.mark.parametrize(
    "values", [[0.0], [1.7], [-1e15, 1e15], [1e-12, 2e-12], [1.7, 1.7], [1e6, 1e6 + 1], [0, 99]]
)
def test_any_values_have_an_axis(values):
    axis = around(values)
    assert all(0 <= axis(value) <= 1 for value in values)
    assert 1 <= len(axis.ticks) <= 12
    assert all(0 <= at <= 1 for at, _ in axis.ticks)
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)
