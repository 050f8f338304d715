"""Differences that make two runs not comparable, such as compilation, data or budget."""

from __future__ import annotations

import random

import pytest

from jepa_lm.study.comparable import apart
from jepa_lm.study.results import collect
from jepa_lm.study.runs import Run
from tests.study.sweeps import paired, study, write_run

COMPILED = {"compiled": True, "compiled_parts": ["main pass", "cross entropy"]}


@pytest.fixture
def difference(tmp_path):
    """difference(summary of a, summary of b, match) returns what is reported about two runs."""

    def told(ours: dict, theirs: dict, match: str | None = "steps", config: dict | None = None):
        left = Run(write_run(tmp_path / "a", 1.7, weight=0, summary=ours))
        right = Run(write_run(tmp_path / "b", 1.6, weight=0.1, summary=theirs, config=config))
        return apart({"a": [left], "b": [right]}, match)

    return told


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        (COMPILED, "compile state: eager (a), compiled (main pass, cross entropy) (b)"),
        ({"precision": "bf16-mixed"}, "precision: 32-true (a), bf16-mixed (b)"),
        ({"precision": None}, "precision: 32-true (a), not recorded (b)"),
        ({"ranks": 2}, "ranks: 1 (a), 2 (b)"),
        ({"source": "0123"}, "source: 4656aac2b4dc (a), 0123 (b)"),
        ({"versions": {"torch": "2.12.0"}}, "version of torch: 2.13.0+cpu (a), 2.12.0 (b)"),
        ({"versions": {"triton": "3"}}, "version of triton: not recorded (a), 3 (b)"),
        ({"steps": 380}, "steps: 400 (a), 380 (b)"),
        ({"val": {"bytes": 1}}, "validation bytes: 465725 (a), 1 (b)"),
        ({"val": {"tokens": 1}}, "validation tokens: 167287 (a), 1 (b)"),
        ({"val": {"weights": "ema"}}, "scored weights: raw (a), ema (b)"),
    ],
)
def test_what_has_to_agree(difference, summary, said):
    assert difference({}, summary) == [said]


def test_equal_runs_and_arms_that_differ_as_they_should(difference):
    assert difference({}, {"seconds": 250.0, "tokens_per_second": 3000.0}) == []
    compiled = {**COMPILED, "compiled_parts": [*COMPILED["compiled_parts"], "objective"]}
    assert difference(COMPILED, compiled) == []


def test_a_commit_to_the_documentation_sets_nothing_apart(difference):
    assert difference({}, {"git": {"commit": "0123", "dirty": True, "diff": "ab"}}) == []


def test_device(difference):
    gpu = {"trainer": {"accelerator": "gpu"}}
    assert difference({}, {}, config=gpu) == ["device: cpu (a), gpu (b)"]


def test_arms_that_are_meant_to_have_another_budget(tmp_path):
    left = Run(write_run(tmp_path / "a", 1.7))
    right = Run(write_run(tmp_path / "b", 1.7, summary={"steps": 444, "ranks": 2}))
    assert apart({"a": [left], "b": [right]}, "steps", ["b"]) == ["ranks: 1 (a), 2 (b)"]


def test_arms_of_equal_time_differ_in_steps_but_not_in_time(difference):
    assert difference({}, {"steps": 200, "seconds": 101.0}, "time") == []
    assert difference({}, {"seconds": 104.0}, "time") == []
    assert difference({}, {"seconds": 106.0}, "time") != []
    assert difference({}, {"seconds": 150.0}, "time") == [
        "seconds of training: 100.0 (a), 150.0 (b)"
    ]
    assert difference({}, {"steps": 200, "seconds": 150.0}, None) == []
    assert difference({}, {"steps": 200}, "flops") == difference({}, {"steps": 200}, "steps") != []


def test_every_run_of_an_arm_counts(tmp_path):
    """The first seeds agree, but a later one was compiled."""
    runs = [
        Run(write_run(tmp_path / n, 1.7, summary=s))
        for n, s in (("0", {}), ("1", {}), ("2", COMPILED))
    ]
    said = "compile state: eager (a, b), compiled (main pass, cross entropy) (b)"
    assert apart({"a": runs[:1], "b": runs[1:]}, "steps") == [said]


def test_arms_without_a_say_change_nothing_but_the_cautions(tmp_path):
    """Neither by being incomparable, nor by scores so far apart that no run would seem to have diverged."""
    draw = random.Random(2)
    scores = paired(1.7, -0.012, 8)
    scores["treatment"]["3"] = 1.9
    baseline = {"weight_0": "control"}
    alone = collect(study(tmp_path / "alone", scores, against={"treatment": baseline}))
    others = {"prediction_only": "first", "half": "second", "double": "third"}
    wild = {arm: {s: 1.7 + draw.gauss(0, 0.5) for s in "12345678"} for arm in others.values()}
    records = {"first": {"precision": "bf16-mixed"}, "second": {"config_hash": "other"}}
    beside = collect(
        study(
            tmp_path / "beside",
            {**scores, **wild},
            against={"treatment": {**baseline, **others}},
            runs={arm: {"summary": of} for arm, of in records.items()},
        )
    )
    (before,), (after,) = alone.treatments, beside.treatments
    assert (before.word, before.apart) == ("unstable", ())
    assert (after.word, after.apart, after.sentence) == (before.word, (), before.sentence)
    assert alone.warnings == ()
    precision, config = beside.warnings
    assert precision == (
        "treatment and first, which has no say, are not comparable: precision: 32-true (treatment), "
        "bf16-mixed (first)"
    )
    assert config.startswith(
        "treatment and second, which has no say, are not comparable: did not run the planned config: 24 ("
    )


def test_a_gate_that_is_not_comparable_leaves_no_verdict(tmp_path):
    scores = paired(1.7, -0.012, 3)
    scores["placebo"] = scores["control"]
    against = {"treatment": {"weight_0": "control", "placebo": "placebo"}}
    runs = {"placebo": {"summary": {"precision": "bf16-mixed"}}}
    found = collect(study(tmp_path, scores, against=against, runs=runs))
    assert found.treatments[0].word == "not comparable"
    assert found.warnings == ()
