"""Figures: vector graphics in the page's colours, with units; they draw what the runs recorded."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

import jepa_lm.study
from jepa_lm.study import figures, figures_over_steps
from jepa_lm.study.curves import Metric, difference, over_seeds, score_metric
from jepa_lm.study.figure_styles import styles
from jepa_lm.study.results import collect
from jepa_lm.study.runs import Run
from tests.study.sweeps import paired, study, write_run

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
    first = sweep.treatments[0]
    return [
        figures.overview(sweep.treatments, look),
        figures.effects(first, look, "effect0"),
        *figures.weights(sweep),
        *figures_over_steps.score_curves(sweep, look)[1],
        *figures_over_steps.diagnostics(sweep, look),
    ]


def texts(panel) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(panel.svg).iter("text")]


def test_no_name_is_used_twice_and_every_one_is_there(panels):
    names = [
        e.attrib["id"]
        for panel in panels
        for e in ElementTree.fromstring(panel.svg).iter()
        if "id" in e.attrib
    ]
    assert len(names) == len(set(names)) > 100
    together = "".join(panel.svg for panel in panels)
    used = re.findall(r'href="#([^"]+)"', together) + re.findall(r"url\(#([^)]+)\)", together)
    assert used
    assert set(used) <= set(names)


def test_colours_are_the_pages_own(panels):
    used = set()
    for panel in panels:
        styled = " ".join(e.get("style", "") for e in ElementTree.fromstring(panel.svg).iter())
        assert not re.findall(r"#(?!000000\b)[0-9a-f]{6}", styled)
        used |= set(re.findall(r"var\((--[\w-]+)\)", styled))
        assert "font-family" not in styled
    assert {"--ink", "--muted", "--rule", "--series-0", "--series-5"} <= used
    assert used <= LIGHT.keys()
    assert LIGHT.keys() == DARK.keys()


def test_nothing_visible_is_plain_black(panels):
    for panel in panels:
        for element in ElementTree.fromstring(panel.svg).iter("text"):
            assert "fill: var(" in element.get("style", ""), element.text


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


def test_text_stays_text_and_dollars_stay_dollars(panels):
    assert "objective=$lewm$ jepa.weight=0.03" in texts(panels[0])


def test_weights_have_a_panel_for_each_objective_and_a_tick_for_each_weight(sweep):
    made = figures.weights(sweep)
    assert [panel.title for panel in made] == ["objective=vicreg", "objective=$lewm$"]
    for panel in made:
        assert [text for text in texts(panel) if re.fullmatch(r"[\d.]+", text)][:4] == [
            "0",
            "0.03",
            "0.1",
            "1",
        ]


def test_one_weight_is_no_sweep(tmp_path):
    settings = {"treatment": {"jepa.weight": "0.1"}}
    assert figures.weights(collect(study(tmp_path, paired(1.7, 0), settings=settings))) == []


def test_controls_have_the_colour_of_text_and_treatments_one_each(sweep):
    look = styles(sweep)
    colours = {name: style.variable for name, style in look.items()}
    controls = [name for name in colours if name.endswith("weight=0")]
    assert {colours[name] for name in controls} == {"var(--ink)"}
    assert len({look[name].dash for name in controls}) == 2
    treated = [colours[name] for name in colours if name not in controls]
    assert sorted(treated) == [f"var(--series-{i})" for i in range(6)]


def test_other_controls_have_colours_and_dashes_while_they_last(tmp_path):
    scores = {name: {"1": 1.7} for name in ("treatment", "none", "same", "placebo", "other")}
    against = {"treatment": {"none": "none", "placebo": "placebo", "other": "other"}}
    folder = study(tmp_path, scores, against=against, identities=((("2", "1"), "same"),))
    look = styles(collect(folder))
    assert {name: (s.variable, bool(s.dash)) for name, s in look.items()} == {
        "treatment": ("var(--series-0)", False),
        "none": ("var(--ink)", False),
        "same": ("var(--ink)", True),
        "placebo": ("var(--series-1)", True),
        "other": ("var(--series-2)", True),
    }
    assert list(look) == list(scores)
    assert look["placebo"].dash != look["other"].dash


def runs_of(folder: Path, scores: dict[str, float], **more) -> dict[str, Run]:
    return {s: Run(write_run(folder / s, bpb, seed=s, **more)) for s, bpb in scores.items()}


def test_a_curve_is_the_mean_between_the_lowest_and_the_highest_seed(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7, "2": 1.8, "3": 1.6}, every=10)
    metric = score_metric(list(runs.values()))
    assert (metric.column, metric.window) == ("train/bpb", 2)
    curve = over_seeds(runs, metric)
    values = np.array([[v for _, v in run.series("train/bpb")] for run in runs.values()])
    smooth = (values[:, 1:] + values[:, :-1]) / 2
    assert curve.steps == tuple(range(19, 400, 10))
    assert curve.seeds == 3
    np.testing.assert_allclose(curve.mean, smooth.mean(0))
    np.testing.assert_allclose(curve.low, smooth.min(0))
    np.testing.assert_allclose(curve.high, smooth.max(0))


def test_differences_are_taken_seed_by_seed(tmp_path):
    control = runs_of(tmp_path / "c", {"1": 1.7, "2": 1.8, "3": 1.9, "4": 2.0})
    treatment = runs_of(tmp_path / "t", {"1": 1.6, "2": 1.78, "3": 1.83})
    curve = difference(treatment, control, Metric("train/bpb", "", 1))
    low, high = stats.t.interval(
        0.95, 2, np.mean([-0.1, -0.02, -0.07]), stats.sem([-0.1, -0.02, -0.07])
    )
    assert curve.seeds == 3
    np.testing.assert_allclose(curve.mean, np.mean([-0.1, -0.02, -0.07]))
    np.testing.assert_allclose(curve.low, low)
    np.testing.assert_allclose(curve.high, high)


def test_scores_on_the_way_are_those_of_validation_where_there_are_some(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7, "2": 1.8})
    assert score_metric(list(runs.values())).column == "train/bpb"
    for run in runs.values():
        lines = ["step,val/bpb", "99,2.0", "199,1.9", "299,1.8", "399,1.7"]
        (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    again = {seed: Run(run.folder) for seed, run in runs.items()}
    metric = score_metric(list(again.values()))
    assert (metric.column, metric.window) == ("val/bpb", 1)
    assert over_seeds(again, metric).steps == (99, 199, 299, 399)


def test_only_steps_that_all_seeds_have(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7, "2": 1.8})
    lines = (runs["2"].folder / "metrics.csv").read_text().splitlines()
    (runs["2"].folder / "metrics.csv").write_text("\n".join(lines[:8]) + "\n")
    curve = over_seeds({s: Run(r.folder) for s, r in runs.items()}, Metric("train/bpb", ""))
    assert max(curve.steps) < 200


def test_long_runs_are_thinned_and_keep_their_end(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7}, every=1)
    curve = over_seeds(runs, Metric("train/bpb", ""))
    assert len(curve.steps) == 200
    assert curve.steps[-1] == 399


def test_nothing_recorded_is_no_figure(tmp_path):
    scores = paired(1.7, -0.01)
    results = collect(study(tmp_path, scores, against={"treatment": {"weight_0": "control"}}))
    for run in results.runs.values():
        (run.folder / "metrics.csv").unlink()
    results = collect(tmp_path)
    look = styles(results)
    assert figures_over_steps.score_curves(results, look)[1] == []
    assert figures_over_steps.diagnostics(results, look) == []
