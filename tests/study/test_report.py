"""The report states what the runs recorded, verdict first, in one file, whatever names users chose."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from dataclasses import replace
from html import unescape
from itertools import product

import numpy as np
import pytest
from scipy import stats

from jepa_lm.study import templates
from jepa_lm.study.against_plan import identity_in_words
from jepa_lm.study.manifest import Comparison, Identity, load
from jepa_lm.study.report import headline
from jepa_lm.study.results import collect
from jepa_lm.study.runs import Run
from jepa_lm.utils.errors import UserError
from tests.study.pages import AGAINST, Report, markdown_tables, report, write_report
from tests.study.sweeps import NATS, paired, study, write_run

LABEL = "objective=vicreg jepa.weight=0.1"


SCORES = {
    **paired(1.70, -0.012),
    "control: regularizers only": {str(s): 1.699 + 0.001 * s for s in range(1, 6)},
    "control: placebo": {str(s): 1.701 + 0.001 * s for s in range(1, 6)},
}


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> Report:
    """A treatment that helps, with three controls and a missing fourth."""
    flops = {"model": 1000, "objective": 0}
    slow = {"seconds": 210.0, "tokens_per_second": 4096.0}
    slow["flops_per_token"] = {"model": 1000, "objective": 1000}
    controls = {
        "weight_0": "control",
        "regularizers_only": "control: regularizers only",
        "placebo": "control: placebo",
    }
    folder = study(
        tmp_path_factory.mktemp("helps"),
        SCORES,
        against={"treatment": controls},
        runs={"control": {"summary": {"flops_per_token": flops}}, "treatment": {"summary": slow}},
        not_applicable={"treatment": {"prediction_only": "it has no regularizer"}},
    )
    return report(folder)


def test_one_file_without_the_network(helps):
    for element in helps.page.all("*"):
        assert element.tag not in ("script", "link", "img", "iframe", "object", "base")
        for key, value in element.attributes.items():
            assert not key.startswith("on"), f"{key} in <{element.tag}>"
            assert key not in ("src", "srcset", "xmlns")
            assert key != "href" or value.startswith("#") or (helps.folder / value).is_dir()
            assert "://" not in value
    assert "@import" not in helps.html
    assert set(re.findall(r"url\((.)", helps.html)) <= {"#"}
    assert "://" not in helps.html


def test_verdict_first(helps):
    assert helps.page.all("section")[0] is helps.verdict
    assert helps.headline == f"{LABEL} helps."
    assert helps.verdict.one("p", class_="word good").text == "helps"
    before = helps.html.index("<h1>")
    assert "<table" not in helps.html[:before]
    assert helps.markdown.startswith(f"# {LABEL} helps.\n")


def test_what_differs_is_beside_the_verdict(helps):
    beside = helps.verdict.one("div", class_="differs")
    cells = [cell.text for cell in beside.all("td")]
    assert [cell.text for cell in beside.all("th")][-1] == "jepa.weight"
    assert cells == ["0.1", "0.0"]


def test_numbers_are_those_of_an_independent_computation(helps):
    rows = {row[0]: row[1:] for row in helps.tables["Scores by arm"][1:]}
    assert list(rows) == list(SCORES)
    for name, scores in SCORES.items():
        values = list(scores.values())
        low, high = stats.t.interval(0.95, 4, statistics.fmean(values), stats.sem(values))
        seeds, mean, std, interval, nats, steps = rows[name]
        assert (seeds, steps) == ("5 of 5", "400")
        assert mean == f"{statistics.fmean(values):.4f}"
        assert std == f"{statistics.stdev(values):.4f}"
        assert interval == f"[{low:.4f}, {high:.4f}]"
        assert nats == f"{statistics.fmean(values) * NATS:.4f}"
    runs = {row[0]: row[1:] for row in helps.tables["BPB of every run"][1:]}
    assert runs == {n: [f"{b:.4f}" for b in s.values()] for n, s in SCORES.items()}


def test_differences_are_those_of_an_independent_computation(helps):
    rows = {row[0]: row[1:] for row in helps.tables["Differences with their uncertainty"][1:]}
    assert rows["role"] == ["weight 0", "regularizers only, gate", "placebo, gate", "weight 0"]
    heads = helps.tables["Differences with their uncertainty"][0]
    assert heads[-1] == "control: placebo against control"
    of_placebo = [SCORES["control: placebo"][s] - x for s, x in SCORES["control"].items()]
    assert rows["mean difference, BPB"][3] == f"{statistics.fmean(of_placebo):+.4f}"
    for i, name in enumerate(("control", "control: regularizers only", "control: placebo")):
        apart = [SCORES["treatment"][s] - SCORES[name][s] for s in SCORES[name]]
        low, high = stats.t.interval(0.95, 4, statistics.fmean(apart), stats.sem(apart))
        assert rows["mean difference, BPB"][i] == f"{statistics.fmean(apart):+.4f}"
        assert rows["95 % interval"][i] == f"[{low:+.4f}, {high:+.4f}]"
        p = stats.ttest_rel(list(SCORES["treatment"].values()), list(SCORES[name].values())).pvalue
        assert rows["p, paired t-test"][i] == ("< 0.0001" if p < 0.0001 else f"{p:.4f}")
        signs = np.array(list(product((1, -1), repeat=5)))
        flips = np.mean(abs(signs @ apart) >= abs(sum(apart)) - 1e-12)
        assert rows["p, sign flips"][i] == f"{flips:.4f}"


def test_markdown_has_the_same_tables(helps):
    ours = list(helps.tables.values())
    theirs = markdown_tables(helps.markdown)
    assert [t for t in theirs if t[0] != ["setting", "treatment", "control"]] == [
        t for t in ours if t[0] != ["setting", "treatment", "control"]
    ]
    assert len(ours) > 6
    for paragraph in helps.verdict.all("p", class_="sentence"):
        assert paragraph.text in " ".join(unescape(helps.markdown).split())


def test_budget_data_and_scope_are_said(helps):
    said = {d.one("dt").text: d.one("dd").text for d in helps.verdict.one("dl").all("div")}
    assert said["Budget"] == (
        "400 optimizer steps, 2,048 tokens a step; 819,200 training tokens; equal steps for all arms."
    )
    assert "Austen corpus" in said["Data"]
    assert "465,725 bytes (167,287 tokens)" in said["Data"]
    assert "2,072,912 parameters" in said["Model"]
    assert "this model only" in said["Scope"]


def test_cost_beside_the_control(helps):
    head, *rows = helps.tables["Cost by arm"]
    row = dict(zip(head, rows[1], strict=True))
    assert row["arm"] == "treatment"
    assert row["seconds"] == "210.0"
    assert row["speed, times the control's"] == "0.50"
    cost = "Cost relative to the control: 2.00 times the FLOPs per token, 0.50 times the tokens per second."
    assert cost in helps.verdict.text
    assert "peak memory, MiB" not in head  # nobody recorded it


def test_arms_that_could_not_be_run_are_named(helps):
    assert "prediction_only (it has no regularizer)" in helps.verdict.text
    assert "Every planned run has finished." in helps.page.text


@pytest.mark.parametrize(
    ("scores", "word", "headline"),
    [
        (paired(1.7, 0.02), "hurts", " hurts."),
        (paired(1.7, 0.0), "equivalent", " is equivalent to its control."),
        (paired(1.7, 0.0, noise=0.02), "no difference shown", ": no difference shown."),
        (paired(1.7, -0.02), "better, no placebo", "better than its control, but no placebo"),
        (paired(1.7, -0.02, 1), "too few seeds", ": too few seeds for a verdict."),
    ],
)
def test_other_outcomes(tmp_path, scores, word, headline):
    made = report(study(tmp_path, scores, against=AGAINST))
    assert headline in made.headline
    assert word in [p.text for p in made.verdict.all("p")]
    assert f"## {LABEL}: {word}" in made.markdown


def test_shares_and_the_distance_from_the_law_are_told_of_every_arm(tmp_path):
    def val(nll: float, **shares: float) -> dict:
        return {"summary": {"val": {"bpb": None, "bytes": 0, "nll": nll, "floor": 1.0, **shares}}}

    runs = {"control": val(1.5, answer_accuracy=0.5), "treatment": val(1.25, answer_accuracy=0.75)}
    runs["treatment"]["summary"]["val"]["probe_root"] = 0.9
    made = report(study(tmp_path, paired(1.7, -0.02, 3), against=AGAINST, runs=runs))
    scores = made.tables["Scores by arm"]
    column = scores[0].index("nats above the law's own score")
    assert {row[0]: row[column] for row in scores[1:]} == {
        "treatment": "0.2500",
        "control": "0.5000",
    }
    heads, *rows = made.tables["Shares at the final validation, mean ± standard deviation"]
    assert heads[1:] == [
        "accuracy of the tokens of answers",
        "accuracy of a linear probe of root",
    ]
    assert {row[0]: row[1:] for row in rows} == {
        "treatment": ["0.7500 ± 0.0000", "0.9000 ± 0.0000"],
        "control": ["0.5000 ± 0.0000", "-"],
    }


SHORT = {"steps": 12}
NO_LOG = {"every": 200}


@pytest.mark.parametrize(
    ("bpb", "runs", "reason"),
    [
        (1.7, {}, None),
        (3.4, {}, "hardly trained: they are 5% below the score of an untrained one"),
        (3.0, {"summary": SHORT, **NO_LOG}, "Each step of training still improves BPB by 0.0"),
        (1.7, NO_LOG, None),
    ],
    ids=["trained", "untrained", "a dozen steps", "few log points"],
)
def test_a_short_study_is_not_headlined_equivalent(tmp_path, bpb, runs, reason):
    """This happened with a study of 12 steps: arms that start alike cannot have diverged by then."""
    nll = {"val": {"nll": bpb * math.log(1024) / 3.59}}
    about = {**runs, "summary": {**nll, **runs.get("summary", {})}}
    scores = paired(bpb, 0.0)
    about_all = dict.fromkeys(scores, about)
    found = collect(study(tmp_path, scores, against=AGAINST, runs=about_all, margin=0.005))
    if reason is None:
        assert headline(found) == f"{LABEL} is equivalent to its control."
    else:
        assert headline(found) == f"{LABEL}: no difference shown."
        assert reason in found.treatments[0].sentence


def test_arms_that_are_not_comparable_get_no_verdict(tmp_path):
    other = {"treatment": {"summary": {"precision": "bf16-mixed"}}}
    made = report(study(tmp_path, paired(1.7, -0.02), against=AGAINST, runs=other))
    alarm = made.verdict.one("div", class_="alarm")
    assert alarm.text.startswith("These arms are not comparable")
    assert "precision: bf16-mixed (treatment), 32-true (control)" in alarm.text
    assert made.html.index("not comparable:") < made.html.index("<h1>")
    assert made.headline == f"{LABEL}: no verdict, because its arms are not comparable."
    assert "**These arms are not comparable" in made.markdown


def test_a_gradient_share_of_exactly_zero_is_a_warning(tmp_path):
    runs = {"treatment": {"jepa": {"trunk_gradient_share": 0.0}}}
    made = report(study(tmp_path, paired(1.7, -0.02), against=AGAINST, runs=runs))
    said = made.verdict.one("div", class_="warning").text
    assert "treatment (seed 1, 2, 3, 4, 5): jepa/trunk_gradient_share was exactly zero" in said
    assert "jepa/trunk_gradient_share was exactly zero in every measurement" in made.markdown


def test_what_the_runs_warned_of_is_told_once(tmp_path):
    jepa = {"collapse": {"figure": "target_std_median"}, "warnings": ["collapsed at step 300"]}
    runs = {
        "treatment": {"jepa": jepa, "summary": {"unfinished": ["schedule x: not over"]}},
        "control": {"summary": {"skipped_steps": 2, "placebo": {"own_document": 0.27}}},
    }
    made = report(study(tmp_path, paired(1.7, 0.0), against=AGAINST, runs=runs))
    said = [item.text for item in made.verdict.one("div", class_="warning").all("li")]
    assert said == [
        "control (seed 1, 2, 3, 4, 5): 27% of the rows got the placebo's target from their own document",
        "control (seed 1, 2, 3, 4, 5): left out 2 steps whose gradient was NaN or infinite",
        "treatment (seed 1, 2, 3, 4, 5): collapsed at step 300",
        "treatment (seed 1, 2, 3, 4, 5): schedule x: not over",
    ]


def test_an_interrupted_sweep(tmp_path):
    scores = paired(1.7, -0.012, 3)
    late = {"control": ("4", "5"), "treatment": ("4", "5")}
    folder = study(tmp_path, scores, against=AGAINST, planned=late)
    write_run(folder / "3", None, seed="4")
    (folder / "8").mkdir()
    failed = {"status": "failed", "error": "step 12: jepa/loss\nis not a number"}
    (folder / "8" / "summary.json").write_text(json.dumps(failed))
    stopped = {"status": "interrupted", "steps": 77}
    write_run(folder / "9", 1.9, seed="5", summary=stopped)
    made = report(folder)
    assert made.headline == f"{LABEL} is unstable: some runs diverged or failed."
    assert "1 diverged or failed (seed 4: step 12: jepa/loss is not a number)" in made.verdict.text
    assert "4 of 10 planned runs" in made.verdict.text
    assert [row[1] for row in made.tables["Scores by arm"][1:]] == ["3 of 5", "3 of 5"]
    assert made.tables["BPB of every run"][2][-2:] == ["-", "-"]
    assert made.tables["Runs without a score"][1:] == [
        ["3", "control seed 4", "unfinished", "no summary.json: it is still running or was killed"],
        ["4", "control seed 5", "not started", "there is no folder"],
        ["8", "treatment seed 4", "failed", "step 12: jepa/loss is not a number"],
        ["9", "treatment seed 5", "interrupted", "stopped after 77 steps"],
    ]


def test_nothing_has_finished(tmp_path):
    none = {"control": {}, "treatment": {}}
    planned = {"control": ("1",), "treatment": ("1",)}
    made = report(study(tmp_path, none, against=AGAINST, planned=planned))
    assert made.headline == "treatment: too few seeds for a verdict."
    assert not made.page.all("figure")


def test_seeds_that_only_one_side_has_do_not_count(tmp_path):
    scores = paired(1.7, -0.01, 4)
    del scores["control"]["2"]
    made = report(study(tmp_path, scores, against=AGAINST))
    rows = {row[0]: row[1:] for row in made.tables["Differences with their uncertainty"][1:]}
    apart = [scores["treatment"][s] - scores["control"][s] for s in ("1", "3", "4")]
    assert rows["pairs of seeds"] == ["3"]
    assert rows["mean difference, BPB"] == [f"{statistics.fmean(apart):+.4f}"]


def test_a_sweep_without_a_control_has_no_verdict_and_says_why(tmp_path):
    scores = {f"jepa.weight={w}": {"1": 1.7, "2": 1.71} for w in (0.1, 0.2)}
    folder = study(tmp_path, scores, kind="sweep", match=None)
    made = report(folder)
    assert made.headline.startswith("No verdict: nothing here is compared with a control.")
    assert "jepa.weight=0" in made.headline
    assert "Differences with their uncertainty" not in made.tables


@pytest.mark.parametrize("order", [("control", "far"), ("far", "control")])
def test_of_several_controls_a_sweep_takes_the_nearest(tmp_path, order):
    """Weight 0 of the same objective, not of another."""
    chosen = {"treatment": ("lewm", "0.1"), "control": ("lewm", "0"), "far": ("patch", "0")}
    settings = {n: {"objective": o, "jepa.weight": w} for n, (o, w) in chosen.items()}
    scores = {**paired(1.7, -0.01), "far": paired(1.9, 0.0)["control"]}
    study(tmp_path, scores, settings=settings, kind="sweep", match=None)
    against = tuple(
        Comparison("treatment", n, "weight_0", {"jepa.weight": (0, 0.1)}) for n in order
    )
    replace(load(tmp_path), comparisons=against).save(tmp_path)
    (treatment,) = collect(tmp_path).treatments
    assert [found.control.name for found in treatment.against] == ["control"]


def test_a_treatment_without_a_baseline_has_no_verdict(tmp_path):
    against = {"treatment": {"placebo": "control"}}
    made = report(study(tmp_path, paired(1.7, -0.02), against=against))
    assert made.headline == f"{LABEL}: no verdict."
    assert "not compared with weight 0" in made.verdict.text


@pytest.mark.parametrize(("seeds", "least"), [(5, "0.062"), (6, None)])
def test_few_seeds_rest_on_normality(seeds, least, tmp_path):
    text = report(study(tmp_path, paired(1.7, -0.02, seeds), against=AGAINST)).verdict.text
    assert ("verdicts rest on differences being normal" in text) == (least is not None)
    assert least is None or f"no p can be below {least}" in text


def test_a_gate_of_few_seeds_rests_on_normality(tmp_path):
    scores = {**paired(1.7, -0.02, 8), "placebo": paired(1.7, 0.0, 5)["treatment"]}
    against = {"treatment": {"weight_0": "control", "placebo": "placebo"}}
    assert (
        "With 5 seeds, verdicts rest"
        in report(study(tmp_path, scores, against=against)).verdict.text
    )


def test_verdicts_are_corrected_for_the_treatments_of_a_study(tmp_path):
    gain = paired(1.7, -0.0038, noise=0.003)
    assert (
        collect(study(tmp_path / "1", gain, against=AGAINST)).treatments[0].word
        == "better, no placebo"
    )
    scores = {**gain, "other": paired(1.7, 0.0, noise=0.004)["treatment"]}
    against = {name: {"weight_0": "control"} for name in ("treatment", "other")}
    two = collect(study(tmp_path / "2", scores, against=against)).treatments
    assert two[0].word == "no difference shown"
    assert "one of 2 treatments may look so by chance" in two[0].sentence


def test_a_harmful_placebo_is_named(tmp_path):
    """The treatment is better than a placebo that does damage, and no better than nothing."""
    scores = {**paired(1.7, 0.0), "placebo": paired(1.7, 0.05)["treatment"]}
    against = {"treatment": {"weight_0": "control", "placebo": "placebo"}}
    told = "The placebo itself is worse than weight 0 (+0.05"
    assert told in report(study(tmp_path / "harm", scores, against=against)).verdict.text
    scores["placebo"] = paired(1.7, -0.05)["treatment"]
    assert (
        "The placebo itself"
        not in report(study(tmp_path / "gain", scores, against=against)).verdict.text
    )


def test_a_broken_identity_leaves_no_verdict(tmp_path):
    same = {"identities": ((("0", "1"), "weight 0 is objective=none"),)}
    made = report(study(tmp_path / "a", paired(1.7, -0.02), against=AGAINST, **same))
    said = "weight 0 is objective=none, but the records of 0 and 1 differ in validation"
    assert said in made.verdict.one("div", class_="alarm").text
    assert made.headline == f"{LABEL}: no verdict, because its arms are not comparable."
    equal = {"control": {"1": 1.7, "2": 1.8}, "treatment": {"1": 1.7, "2": 1.8}}
    same = {"identities": ((("0", "2"), "weight 0 is objective=none"),)}
    made = report(study(tmp_path / "b", equal, against=AGAINST, **same))
    assert not made.verdict.all("div", class_="alarm")
    assert "the records of 0 and 2 agree to the last digit" in made.page.text


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"status": "failed", "error": "step 9: loss is nan", "cause": "run"}, "0 has no score"),
        ({"status": "failed", "error": "no space left", "cause": "machine"}, "Not verified: "),
    ],
)
def test_weight_0_that_fails_where_none_does_not_differs_from_it(record, said, tmp_path):
    same = {"identities": ((("0", "1"), "weight 0 is objective=none"),)}
    folder = study(tmp_path, paired(1.7, -0.02), against=AGAINST, **same)
    (folder / "0" / "summary.json").write_text(json.dumps({**record, "val": None}))
    made = report(folder)
    assert said in made.verdict.text
    assert made.headline.endswith("not comparable.") == (record["cause"] == "run")


@pytest.mark.parametrize("column", ["train/ce", "train/bpb", "val/bpb"])
def test_weight_0_must_equal_none_in_every_logged_loss(column, tmp_path):
    """Also where the final scores are equal to the last digit."""
    equal = {"control": {"1": 1.7, "2": 1.8}, "treatment": {"1": 1.7, "2": 1.8}}
    same = {"identities": ((("0", "2"), "weight 0 is objective=none"),)}
    folder = study(tmp_path, equal, against=AGAINST, **same)
    path = folder / "2" / "metrics.csv"
    rows = list(csv.DictReader(path.open(newline="")))
    changed = [row for row in rows if row[column]][-1]
    changed[column] = str(float(changed[column]) * (1 + 1e-15))
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    found = report(folder)
    assert found.headline.endswith("not comparable.")
    assert f"differ in {column}, starting at step {changed['step']}" in found.verdict.text


@pytest.mark.parametrize("has", ["0", "2"])
def test_a_figure_that_a_former_version_did_not_log_is_no_difference(has, tmp_path):
    for run in ("0", "2"):
        write_run(tmp_path / run, 1.7, weight=0.0)
    path = tmp_path / has / "metrics.csv"
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join((f"{first},val/new", *(f"{line},0.5" for line in lines), "")))
    assert Run(path.parent).series("val/new")
    pair = Identity(("0", "2"), "weight 0 is objective=none")
    assert identity_in_words(tmp_path, pair).startswith("agree to the last digit")


@pytest.mark.parametrize("lacks", ["0", "2"])
def test_weight_0_must_have_logged_the_steps_of_none(lacks, tmp_path):
    for run in ("0", "2"):
        write_run(tmp_path / run, 1.7, weight=0.0)
    pair = Identity(("0", "2"), "weight 0 is objective=none")
    assert identity_in_words(tmp_path, pair).startswith("agree to the last digit")
    path = tmp_path / lacks / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ",199," not in line))
    assert identity_in_words(tmp_path, pair) == "differ in train/bpb, starting at step 199"


def test_a_broken_identity_concerns_only_its_own_treatment(tmp_path):
    scores = {**paired(1.7, -0.02), "other": paired(1.7, -0.02)["treatment"]}
    against = {name: {"weight_0": "control"} for name in ("treatment", "other")}
    same = {"identities": ((("0", "1"), "weight 0 is objective=none", ("10", "11")),)}
    treatment, other = collect(study(tmp_path, scores, against=against, **same)).treatments
    assert not treatment.apart
    assert other.apart


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"skipped_steps": 3}, "steps were skipped in 5 of 5 runs"),
        ({"jepa": {"collapse": {"figure": "x"}}}, "latents collapsed in 5 of 5 runs"),
    ],
)
def test_what_makes_a_verdict_doubtful_is_in_the_headline(record, said, tmp_path):
    runs = {"treatment": {"summary": record}}
    one = report(study(tmp_path / "1", paired(1.7, 0.02), against=AGAINST, runs=runs))
    assert one.headline == f"{LABEL} hurts. Doubtful: {said}."
    scores = {**paired(1.7, 0.02), "other": paired(1.7, 0.02)["treatment"]}
    against = {name: {"weight_0": "control"} for name in ("treatment", "other")}
    two = report(study(tmp_path / "2", scores, against=against, runs=runs))
    assert two.headline.endswith(f"Hurts: 2. Doubtful: {said} ({LABEL}).")
    assert f"Doubtful: {said}. Worse than weight 0" in two.verdict.text
    alike = dict.fromkeys(("second", "third", "fourth", "fifth"), scores["other"])
    against = {name: {"weight_0": "control"} for name in alike}
    many = study(
        tmp_path / "4",
        {"control": scores["control"], **alike},
        against=against,
        runs=dict.fromkeys(alike, runs["treatment"]),
    )
    assert f"Doubtful: {said} ({LABEL}, {LABEL}, {LABEL} and 1 more)." in headline(collect(many))


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("control", {"summary": {"skipped_steps": 3}}, "steps were skipped in 5 of 5 runs of"),
        (
            "placebo",
            {"jepa": {"trunk_gradient_share": 0.0}},
            "did not reach the trunk in 5 of 5 runs of",
        ),
    ],
)
def test_controls_with_a_say_make_a_verdict_doubtful_too(name, record, said, tmp_path):
    scores = {**paired(1.7, -0.02), "placebo": paired(1.7, 0.0)["treatment"]}
    against = {"treatment": {"weight_0": "control", "placebo": "placebo"}}
    made = report(study(tmp_path, scores, against=against, runs={name: record}))
    assert f"{said} {name}." in made.headline


def test_an_injected_latent_need_not_reach_the_trunk(tmp_path):
    runs = {"jepa": {"trunk_gradient_share": 0.0}}
    plain = study(tmp_path / "a", paired(1.7, -0.02), against=AGAINST, runs={"treatment": runs})
    assert "Doubtful" in report(plain).headline
    runs = {"treatment": {**runs, "config": {"model": {"injector": {"dim": 8}}}}}
    chunk = report(study(tmp_path / "b", paired(1.7, -0.02), against=AGAINST, runs=runs))
    assert "Doubtful" not in chunk.headline
    assert "jepa/trunk_gradient_share was exactly zero" in chunk.page.text


@pytest.mark.parametrize("role", ["placebo", "regularizers_only"])
def test_a_gain_that_was_not_held_against_the_regularizers_is_doubtful(role, tmp_path):
    config = {"config": {"jepa": {"regularizers": {"variance": {"weight": 1.0}}}}}
    scores = {**paired(1.7, -0.02), "other": paired(1.7, 0.0, noise=0.002)["treatment"]}
    against = {"treatment": {"weight_0": "control", role: "other"}}
    made = report(study(tmp_path, scores, against=against, runs={"treatment": config}))
    alone = "Doubtful: it was not held against its regularizers alone."
    assert (alone in made.headline) == (role == "placebo")


def test_scores_that_must_be_equal_differ_by_a_last_digit(tmp_path):
    same = {"identities": ((("0", "1"), "weight 0 is objective=none"),)}
    study(tmp_path, {"control": {"1": 1.7}, "treatment": {"1": 1.7}}, **same)
    (identity,) = load(tmp_path).identities
    assert identity_in_words(tmp_path, identity).startswith("agree to the last digit")
    path = tmp_path / "1" / "summary.json"
    found = json.loads(path.read_text())
    found["val"]["nll"] = math.nextafter(found["val"]["nll"], 0)
    path.write_text(json.dumps(found))
    assert identity_in_words(tmp_path, identity).startswith("differ in validation: ")


NASTY = (
    '<script>alert(1)</script> $x_2$ | "quoted" & [a](http://b) `c` *d* [red]e[/red] {0} %s :smile: _f_ '
    "it's \\n #g"
)
UNSEEN = "\x1b[31m\n\u202e"
"""Text that would control a terminal, and how it is shown."""
SHOWN = r"\x1b[31m\n\u202e"


def test_what_users_wrote_stays_text(tmp_path):
    scores = paired(1.7, -0.01)
    name = NASTY + UNSEEN
    scores = {"control": scores["control"], name: scores["treatment"]}
    folder = study(
        tmp_path,
        scores,
        against={name: {"weight_0": "control"}},
        settings={name: {"objective": name, "jepa.weight": "0.1"}},
        differences={name: (0.0, name)},
        command=("python", "train.py", name),
        name=name,
        planned={"control": ("9",)},
        runs={name: {"objective": r'"\e[31m\u202E<i>"', "config": {"task_name": name}}},
        notes=(name,),
    )
    (folder / "5").mkdir(exist_ok=True)
    (folder / "5" / "summary.json").write_text(json.dumps({"status": "failed", "error": NASTY}))
    made = report(folder)
    assert not made.page.all("script")
    assert not made.page.all("a", href="http://b")
    assert made.tables["Scores by arm"][2][0] == NASTY + SHOWN
    for page in (made.html, made.markdown):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page)
    assert made.tables["Runs without a score"][1][3] == NASTY
    assert NASTY + SHOWN in made.page.one("head").one("title").text
    assert "<script" not in made.markdown
    assert "](http" not in made.markdown.replace("\\(", "")
    for table in markdown_tables(made.markdown):
        assert len({len(row) for row in table}) == 1
    assert [row[0] for row in markdown_tables(made.markdown)[1]] == [
        "arm",
        "control",
        NASTY + SHOWN,
    ]


def test_it_is_built_again_in_place(helps):
    before = sorted(path.name for path in helps.folder.iterdir())
    again = report(helps.folder)
    assert sorted(path.name for path in helps.folder.iterdir()) == before
    built = re.compile(r"Built [^<\n]*")
    assert built.sub("", again.html) == built.sub("", helps.html)


def test_runs_that_keep_a_page_are_linked(tmp_path):
    study(tmp_path, paired(1.7, -0.012, 3), against=AGAINST)
    (tmp_path / "1" / "run.html").write_text("<p>")
    found = report(tmp_path)
    runs = found.page.one("section", id="arms").all("table")[1]
    links = [a.attributes["href"] for a in runs.all("a")]
    assert links == ["0/", "1/run.html", "2/", "3/", "4/", "5/"]
    assert "Pages of the runs: [1](1/run.html)\n\nCommand-line" in found.markdown


def test_a_folder_without_a_plan(tmp_path):
    with pytest.raises(UserError, match=r"study\.json"):
        write_report(tmp_path)


def test_a_name_may_break_after_its_signs_but_not_within_a_number():
    name = "jepa.weight=0.01/seed_2"
    assert templates._breakable(name) == "jepa.<wbr>weight=<wbr>0.01/<wbr>seed_<wbr>2"
