"""The report is built from what every run recorded: compilation, budget, data, source, gradient share."""

from __future__ import annotations

import re

import pytest

from jepa_lm.study.cautions import of_run
from jepa_lm.study.runs import Run
from tests.study.pages import AGAINST, report
from tests.study.sweeps import paired, study, write_run


def test_every_control_has_to_be_comparable(tmp_path):
    """A control other than the baseline was compiled."""
    compiled = {"summary": {"compiled": True, "compiled_parts": ["main pass"]}}
    against = {"treatment": {"weight_0": "control", "placebo": "control: placebo"}}
    scores = {**paired(1.7, -0.012), "control: placebo": {str(s): 1.701 for s in range(1, 6)}}
    made = report(study(tmp_path, scores, against=against, runs={"control: placebo": compiled}))
    alarm = made.verdict.one("div", class_="alarm").text
    assert (
        "compile state: eager (treatment, control), compiled (main pass) (control: placebo)"
        in alarm
    )
    assert made.headline.endswith("not comparable.")


def test_arms_of_a_sweep_without_a_control_have_to_be_comparable_too(tmp_path):
    scores = {f"jepa.weight={w}": {"1": 1.7, "2": 1.71} for w in (0.1, 0.2)}
    runs = {"jepa.weight=0.2": {"summary": {"compiled": True}}}
    made = report(study(tmp_path, scores, kind="sweep", match=None, runs=runs))
    assert "compile state: " in made.verdict.one("p", class_="alarm").text


def test_budget_and_data_of_all_runs_are_said_in_both_files(tmp_path):
    """Also what holds for only some of the runs."""
    config = {
        "trainer": {"max_steps": None, "max_time": 60.0},
        "data": {"corpus": {"_target_": "jepa_lm.data.corpora.FineWeb"}},
    }
    runs = {
        "treatment": {"config": config, "summary": {"tokens": 409600, "passes": 0.4}},
        "control": {"summary": {"passes": 1.61}},
    }
    made = report(study(tmp_path, paired(1.7, 0.0), against=AGAINST, runs=runs))
    said = {d.one("dt").text: d.one("dd").text for d in made.verdict.one("dl").all("div")}
    assert said["Budget"] == (
        "400 optimizer steps, 2,048 tokens a step or, in other runs, 60 seconds of training, 2,048 tokens "
        "a step; 409,600 to 819,200 training tokens; passes over the training split: 0.40 to 1.61."
    )
    assert "Austen corpus" in said["Data"]
    assert "or, in other runs, FineWeb corpus" in said["Data"]
    for term, text in said.items():
        assert f"- {term}: {text}" in made.markdown


def test_what_runs_recorded_is_told_and_not_what_was_planned(tmp_path):
    """Another config than planned, uncommitted source, the steps that were taken."""
    git = {"commit": "0123456789abcdef", "dirty": True, "diff": "feed"}
    record = {"config_hash": "beef", "steps": 380, "git": git}
    made = report(
        study(tmp_path, paired(1.7, 0.0), against=AGAINST, runs={"control": {"summary": record}})
    )
    warned = [item.text for item in made.verdict.one("div", class_="warning").all("li")]
    alarm = made.verdict.one("div", class_="alarm").text
    assert (
        "did not run the planned config: 0 (control seed 1), 1 (control seed 2), 2 (control "
        "seed 3) and 2 more" in alarm
    )
    assert made.headline.endswith(": no verdict, because its arms are not comparable.")
    assert any("uncommitted changes" in text for text in warned)
    hashes = {row[0]: row[2:4] for row in made.tables["Configs, by hash"][1:]}
    assert (hashes["0"], hashes["5"]) == (["feefa85d7d0c754f", "beef"], ["feefa85d7d0c754f"] * 2)
    commit = ["git commit", "0123456789ab with changes feed", "control"]
    assert commit in made.tables["What the runs recorded"]
    assert [row[-1] for row in made.tables["Scores by arm"][1:]] == ["380", "400"]


@pytest.mark.parametrize(
    ("measured", "last", "said"),
    [
        ("0.0 0.1", 0.1, "in 1 of 2 measurements"),
        ("0.1 0.0", 0.0, "in 1 of 2 measurements"),
        ("0.0 0.0", 0.0, "in every measurement"),
        ("", 0.0, "in every measurement"),
        ("0.1 0.0004", 0.0004, None),
    ],
)
def test_a_share_of_zero_is_told_whenever_it_was_measured(tmp_path, measured, last, said):
    run = Run(write_run(tmp_path, 1.7, jepa={"trunk_gradient_share": last}))
    lines = [
        "step,jepa/trunk_gradient_share",
        *(f"{i},{x}" for i, x in enumerate(measured.split())),
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    found = [text.partition("was exactly zero ")[2] for text in of_run(run)]
    beginnings = [re.split(":|, where", text)[0] for text in found]
    assert beginnings == ([] if said is None else [said])


def test_a_gain_whose_gradient_reaches_nothing_is_warned_of_whatever_the_verdict(tmp_path):
    scores = {**paired(1.7, -0.012), "control: placebo": {str(s): 1.701 for s in range(1, 6)}}
    against = {"treatment": {"weight_0": "control", "placebo": "control: placebo"}}
    runs = {"treatment": {"jepa": {"trunk_gradient_share": 0.0}}}
    made = report(study(tmp_path, scores, against=against, runs=runs))
    told = " helps. Doubtful: the objective's gradient did not reach the trunk in 5 of 5 runs."
    assert made.headline.endswith(told)
    assert "was exactly zero" in made.verdict.one("div", class_="warning").text


def test_a_headline_says_what_ran_and_not_what_was_asked(tmp_path):
    """Weight 0.3 was requested, 0.1 ran."""
    asked = {"treatment": {"objective": "lewm", "jepa.weight": "0.3", "data.seq_len": "256"}}
    made = report(study(tmp_path, paired(1.7, -0.02), against=AGAINST, settings=asked))
    assert "objective=vicreg jepa.weight=0.1 data.seq_len=256" in made.headline
