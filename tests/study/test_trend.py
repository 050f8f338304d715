"""The trend of an effect over a ladder: its slope, its words, and the runs and rungs that it rests on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from jepa_lm.study import figures_over_compute, packing, trend_tables
from jepa_lm.study.chart import INK
from jepa_lm.study.paired import paired_test
from jepa_lm.study.report import tell
from jepa_lm.study.results import collect
from jepa_lm.study.statistics import effect
from jepa_lm.study.trend import SHOWN, Trend, said, slopes
from tests.study.pages import read, report
from tests.study.sweeps import climbing, paired, study

X = np.array([11.3, 12.0, 12.4, 13.9])
"""log10 of the FLOPs of four rungs."""
STUDIES = 2000


def end(mean: float, seeds: int = 5, noise: float = 0.001):
    """Return an effect at a rung; of 0.004 or more it is shown."""
    spread = noise * np.array([-1, 1, -0.5, 0.5, 0.0, *np.zeros(max(0, seeds - 5))])[:seeds]
    return effect(
        {str(i): 1.0 + 0.01 * i + mean + s for i, s in enumerate(spread)},
        {str(i): 1.0 + 0.01 * i for i in range(seeds)},
        resamples=0,
    )


def drawn(rng, line, n: int, spread=(0.001, 0.002, 0.004, 0.008)) -> np.ndarray:
    """Return differences [studies, n, rungs] around a line: a deviation for each rung, and a shared part."""
    shared = rng.normal(scale=0.002, size=(STUDIES, n, 1))
    return line + shared + rng.normal(size=(STUDIES, n, len(X))) * np.array(spread)


def test_the_slope_is_that_of_polyfit_and_its_test_students():
    found = drawn(np.random.default_rng(1), 0.002 * X, 5)[:20]
    plain = [np.polyfit(X, seeds.T, 1)[0] for seeds in found]
    np.testing.assert_allclose(slopes(X, found), plain, rtol=1e-9)
    by_scipy = [stats.ttest_1samp(of, 0.0).pvalue for of in plain]
    np.testing.assert_allclose(paired_test(slopes(X, found)), by_scipy, rtol=1e-9)


@pytest.mark.parametrize("n", [3, 5])
def test_a_true_slope_is_covered_and_no_slope_is_called_one_in_five_of_a_hundred(n):
    """Though the rungs have other variances and those of a seed go together."""
    line = 0.01 - 0.003 * (X - X.mean())
    around = slopes(X, drawn(np.random.default_rng(2), line, n)) + 0.003
    wrong = float(np.mean(paired_test(around) < 0.05))
    assert abs(around.mean()) < 1e-4
    assert wrong <= stats.binom.ppf(0.9995, STUDIES, 0.05) / STUDIES
    assert wrong >= stats.binom.ppf(0.0005, STUDIES, 0.05) / STUDIES


def test_words_of_studies_without_a_trend_are_wrong_in_five_of_a_hundred():
    """Whether there is an effect or none: a word needs the slope, so it errs no more often than its test."""
    for level in (0.0, -0.01):
        found = drawn(np.random.default_rng(3), level, 4)
        tested = paired_test(slopes(X, found)) < 0.05
        assert tested.mean() <= stats.binom.ppf(0.9995, STUDIES, 0.05) / STUDIES
        for differences, shown in list(zip(found, tested, strict=True))[:30]:
            assert (word_of(differences) in SHOWN) == shown


def word_of(differences: np.ndarray) -> str:
    """Return the word on differences [seeds, rungs] of one treatment."""
    zero = {str(i): 0.0 for i in range(len(differences))}
    slope, *ends = (
        effect({str(i): float(v) for i, v in enumerate(of)}, zero, resamples=0)
        for of in (slopes(X, differences), differences[:, 0], differences[:, -1])
    )
    return said(slope, *ends).word


GAIN, HARM, NONE = -0.01, 0.01, 0.0002


@pytest.mark.parametrize(
    ("slope", "first", "last", "word"),
    [
        (-0.01, NONE, GAIN, "grows"),
        (-0.01, GAIN / 2, GAIN, "grows"),
        (0.01, NONE, HARM, "grows"),
        (0.01, GAIN, NONE, "vanishes"),
        (0.01, GAIN, GAIN / 2, "vanishes"),
        (-0.01, HARM, NONE, "vanishes"),
        (-0.01, HARM, GAIN, "changes sign"),
        (0.01, GAIN, HARM, "changes sign"),
        (-0.01, NONE, NONE, "shifts"),
        (-0.01, GAIN, NONE, "shifts"),  # there where the slope leads, and not at the end of it
        (-0.01, NONE, HARM, "shifts"),
        (0.0002, GAIN, GAIN, "no trend shown"),
        (0.0002, HARM, GAIN, "no trend shown"),
    ],
)
def test_a_word_says_what_is_shown_at_the_ends(slope, first, last, word):
    claimed = said(end(slope), end(first), end(last))
    assert claimed.word == word
    tests = {
        "grows": (slope, last),
        "vanishes": (slope, first),
        "changes sign": (slope, first, last),
    }
    assert claimed.p == max(end(mean).p for mean in tests.get(word, (slope,)))


def test_three_seeds_are_enough_and_two_are_not():
    assert said(end(-0.01, 3), end(NONE, 3), end(GAIN, 3)).word == "grows"
    assert said(end(-0.01, 2), end(NONE, 2), end(GAIN, 2)).word == "too few seeds"
    assert said(end(-0.01, 5, noise=0.0), end(NONE), end(GAIN)).word == "too few seeds"  # no spread


def trend(folder, effects=(-0.002, -0.006, -0.010, -0.014), **more) -> Trend:
    """Return the only trend of planted runs."""
    (found,) = collect(climbing(folder, {"lewm": effects}, **more)).trends
    return found


def test_planted_runs_give_their_slope_and_word(tmp_path):
    found = trend(tmp_path)
    assert (found.word, found.slope.n, found.apart) == ("grows", 5, ())
    low, high = found.slope.interval
    assert low < -0.004 < high
    assert found.label == "objective=lewm jepa.weight=0.1"
    assert found.sentence.startswith("The gain grows with compute: -0.00")
    assert "BPB per tenfold compute, 95 % interval" in found.sentence
    assert "Measured from 1e11 to 1e14 FLOPs of the baseline's run (r0 to r3);" in found.sentence
    assert found.sentence.endswith("this says nothing about larger scale.")
    mean, lower, upper = found.line(np.array([11.0, 14.0]))
    assert (lower < mean).all()
    assert (mean < upper).all()
    np.testing.assert_allclose(np.diff(mean) / 3, found.slope.mean)


@pytest.mark.parametrize(
    ("effects", "word", "says"),
    [
        ((0.014, 0.010, 0.006, 0.002), "vanishes", "The harm shrinks with compute: -0.00"),
        (
            (-0.010, -0.010, -0.010, -0.010),
            "no trend shown",
            "8 studies of 10 would find a slope of",
        ),
        ((0.012, 0.004, -0.004, -0.012), "changes sign", "A harm turns into a gain with compute"),
    ],
)
def test_a_sentence_says_the_rest(tmp_path, effects, word, says):
    found = trend(tmp_path, effects)
    assert found.word == word
    assert says in found.sentence


def edit(folder, name: str, **summary) -> None:
    """Change the summary of the first run of an arm."""
    plan = json.loads((folder / "study.json").read_text())
    run = next(iter(next(g for g in plan["groups"] if g["name"] == name)["runs"].values()))
    path = folder / run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | summary))


TREATED = "rung-r{}_objective-lewm/treatment"


def test_a_seed_that_lacks_a_rung_is_left_out(tmp_path):
    trend(tmp_path)
    plan = json.loads((tmp_path / "study.json").read_text())
    runs = next(g for g in plan["groups"] if g["name"] == TREATED.format(2))["runs"]
    (tmp_path / runs["4"] / "summary.json").unlink()  # killed: the machine's doing
    (found,) = collect(tmp_path).trends
    assert found.seeds == ("1", "2", "3", "5")
    assert found.word == "grows"
    assert "Seeds that lack a rung are left out: 4." in found.sentence
    for seed in ("2", "3", "5"):
        (tmp_path / runs[seed] / "summary.json").unlink()
    (found,) = collect(tmp_path).trends
    assert found.word == "too few seeds"
    assert "Too few seeds for a trend: 1 have every rung; at least 3" in found.sentence


def test_a_run_that_diverged_is_out_of_the_trend_which_is_unstable(tmp_path):
    trend(tmp_path)
    edit(
        tmp_path,
        TREATED.format(3),
        val={"nll": 9.0, "bpb": 5.0, "tokens": 167287, "bytes": 465725, "weights": "raw"},
    )
    (found,) = collect(tmp_path).trends
    assert (found.word, found.seeds) == ("unstable", ("2", "3", "4", "5"))
    assert found.sentence.startswith(
        "At r3: Of the treatment's runs, 1 diverged or failed (seed 1: 5.0000 BPB"
    )
    assert "The others say: The gain grows with compute" in found.sentence


@pytest.mark.parametrize(
    ("arms", "why"),
    [
        ((TREATED.format(1),), "at r1: precision: "),
        (("rung-r1/control", TREATED.format(1)), "the rungs differ in precision: "),
    ],
)
def test_a_broken_comparison_at_any_rung_is_no_trend(tmp_path, arms, why):
    """Also if the runs of a rung agree with each other, and not with those of the others."""
    runs = {arm: {"summary": {"precision": "bf16-mixed"}} for arm in arms}
    found = trend(tmp_path, runs=runs)
    assert found.word == "not comparable"
    assert any(text.startswith(why) for text in found.apart)


def test_holm_goes_over_the_trends_and_not_over_the_rungs(tmp_path):
    """A slope that would stand alone does not beside two others."""
    effects = {"lewm": (0.0, -0.002, -0.004, -0.006), "patch": (0.0,) * 4, "vicreg": (0.001,) * 4}
    found = collect(climbing(tmp_path, effects, noise=0.003, seeds=6)).trends
    alone = [said(t.slope, t.points[0].effect, t.points[-1].effect) for t in found]
    order = sorted(range(3), key=lambda i: alone[i].p)
    assert order[0] == 0
    assert alone[0].p < 0.05 < 3 * alone[0].p
    assert alone[0].word in SHOWN
    stepped = np.maximum.accumulate([min(1.0, (3 - r) * alone[i].p) for r, i in enumerate(order)])
    assert [found[i].adjusted.difference for i in order] == pytest.approx(stepped.tolist())
    assert found[0].word == "no trend shown"
    assert "But one of 3 treatments may look so by chance: p = 0." in found[0].sentence


def test_two_rungs_of_an_edited_plan_are_no_trend(tmp_path):
    trend(tmp_path, (-0.002, -0.006), log_flops=(11.0, 12.0))
    (found,) = collect(tmp_path).trends
    assert (found.word, found.slope.n, found.laws) == ("too few seeds", 0, None)


def test_a_study_without_a_ladder_has_no_trends(tmp_path):
    folder = study(tmp_path, paired(1.7, -0.02), against={"treatment": {"weight_0": "control"}})
    assert collect(folder).trends == ()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    effects = {"lewm": (-0.002, -0.006, -0.010, -0.014), "vicreg": (0.012, 0.008, 0.004, 0.0)}
    return report(climbing(tmp_path_factory.mktemp("page"), effects))


def test_the_report_tells_the_trends_first(page):
    assert page.headline.startswith(
        "Trends of 2 treatments with compute: grows: 1; vanishes: 1. At the"
    )
    assert [p.text for p in page.verdict.all("p", class_="word good")][:1] == ["grows"]
    trends = collect(page.folder).trends
    said_of = page.verdict.all("div", class_="says")
    for trend_of, element in zip(trends, said_of, strict=True):
        assert trend_of.sentence in element.text.replace("\N{NO-BREAK SPACE}", " ")
    flat = " ".join(page.markdown.split())
    assert "over the rungs: grows" in flat
    assert "times the compute of the treatment's" in flat
    slopes_of, rungs, laws_of = (
        page.tables[caption]
        for caption in page.tables
        if caption[:5] in ("Trend", "Rungs", "Power")
    )
    assert [row[2] for row in slopes_of[1:]] == ["grows", "vanishes"]
    assert slopes_of[1][3] == f"{trends[0].slope.mean:+.4f}"
    assert [row[3] for row in rungs[1:5]] == ["1e11", "1e12", "1e13", "1e14"]
    assert len(laws_of) == 5
    assert "say nothing about larger scale" in page.verdict.text


def test_the_figures_end_with_the_ladder(page):
    """Curves, bands and marks lie between the smallest and the largest rung."""
    for found in collect(page.folder).trends:
        for panel in (
            figures_over_compute.effect(found, INK, wide=True),
            figures_over_compute.losses(found, INK, wide=True),
        ):
            chart = panel.drawn
            ticks = [at for at, _ in chart.across.ticks]
            assert [text for _, text in chart.across.ticks] == ["1e11", "1e12", "1e13", "1e14"]
            long = [line for line in chart.lines if len(line.points) > 1]
            marks = [line for line in chart.lines if len(line.points) == 1]
            assert len(marks) == 4 * (2 if panel.key else 1)
            for line in long:
                for points in (line.points, line.band or line.points):
                    assert (points[0][0], points[-1][0]) == (ticks[0], ticks[-1])
            assert {line.points[0][0] for line in marks} == set(ticks)
            assert chart.says.count("r3") >= 1
        first, last = (found.points[i].effect for i in (0, -1))
        effects = figures_over_compute.effect(found, INK, wide=True).drawn
        assert [line.points[0][1] for line in effects.lines[1:]][:: len(found.points) - 1] == [
            first.mean,
            last.mean,
        ]


def test_a_packed_study_has_its_trend_elsewhere(tmp_path):
    found = trend(tmp_path / "mine")
    packed = packing.pack(tmp_path / "mine").rename(tmp_path / "theirs.zip")
    (theirs,) = collect(packing.unpack(packed)).trends
    assert (theirs.sentence, theirs.slope) == (found.sentence, found.slope)


def test_the_slopes_against_other_controls_are_told_without_a_word(tmp_path):
    """The placebo gains as the treatment does, so against it nothing grows."""
    folder = climbing(tmp_path, {"lewm": (-0.002, -0.006, -0.010, -0.014)})
    plan = json.loads((folder / "study.json").read_text())
    for i in range(4):
        shared = next(g for g in plan["groups"] if g["name"] == TREATED.format(i))
        plan["groups"].append(shared | {"name": f"rung-r{i}_objective-lewm/placebo"})
        asked = next(c for c in plan["comparisons"] if c["of"] == TREATED.format(i))
        against = {"against": f"rung-r{i}_objective-lewm/placebo", "role": "placebo"}
        plan["comparisons"].append(asked | against)
    (folder / "study.json").write_text(json.dumps(plan))
    (found,) = collect(folder).trends
    assert found.others["placebo"].mean == 0.0
    assert [row[1:4] for row in trend_tables.trends([found]).rows] == [
        ("weight 0", "grows", f"{found.slope.mean:+.4f}"),
        ("placebo", "-", "+0.0000"),
    ]


def test_what_makes_a_rung_doubtful_is_in_the_headline_and_with_the_trend(tmp_path):
    runs = {TREATED.format(3): {"jepa": {"trunk_gradient_share": 0.0}}}
    folder = climbing(tmp_path, {"lewm": (-0.002, -0.006, -0.010, -0.014)}, runs=runs)
    said: list[str] = []
    page = tell(folder, said.append).read_text()
    doubt = "Doubtful: the objective's gradient did not reach the trunk in 5 of 5 runs"
    assert f"{doubt} (objective=lewm jepa.weight=0.1 rung=r3)." in said[0]
    assert f" (grows): {doubt} at r3. The gain grows with compute" in said[1]
    assert (
        f"{doubt} at r3. The gain grows with compute"
        in read(page).one("section", id="verdict").text
    )
