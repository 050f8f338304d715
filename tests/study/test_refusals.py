"""Refusals of a sweep or a study before anything runs, in one line."""

from __future__ import annotations

import pytest

from tests.study.conftest import WITHOUT_OTHERS

MISTAKES = [
    (("study.match=time",), "study.match=time: needs trainer.max_time and trainer.max_steps=null"),
    (
        ("trainer.max_time=5",),
        "study.match=steps: needs trainer.max_steps and trainer.max_time=null",
    ),
    (("study.match=tokens",), "study.match=tokens: expected one of steps, flops, time"),
    (("+study.arm=1",), "study.arm: a study has no such setting; did you mean study.arms?"),
    (("+study.arms.placebo.sett=[a]",), "did you mean study.arms.placebo.set?"),
    (("study.arms.weight_0.same_as=non",), "same_as=non: there is no such arm"),
    (("study.arms.placebo.set=abc",), "study.arms.placebo.set=abc: expected"),
    (("seed=a,b",), "seed=a,b: expected whole numbers"),
    (
        ("+study.arms.x={role:other,scale:{jepa.weight:abc}}",),
        "scale.jepa.weight=abc: expected a number",
    ),
    ((f"+study.arms.{'a' * 61}={{role:other}}",), "an arm has a name of up to 60 letters"),
    (("jepa.weight=interval(0,1)",), "jepa.weight: an interval is for a search"),
    (("jepa.weight=interval(1,0)",), "the first number must be less than the second"),
    (("hydra.sweeper.trials=3",), "hydra.sweeper.trials=3: a search has no controls"),
    (("study=ablatoin",), "did you mean ablation?"),
    (("jepa.wieght=0,1",), "did you mean jepa.weight?"),
    (
        ("study.arms.none=null", "study.arms.weight_0=null"),
        "study.arms: no arm with role weight_0, none, control applies to treatment",
    ),
    (("study=ablatoin", "seed=1,2"), "study=ablatoin: no such option; did you mean ablation?"),
    (("objective=lwem", "seed=range(1,4)"), "objective=lwem: no such option; did you mean lewm?"),
    (("jepa.wieght=0.1", "seed=1,2"), "did you mean jepa.weight?"),
    (("objective=none",), "objective=none: is the control of this study"),
    (("jepa.weight=0",), "jepa.weight=0: is already an arm of this study"),
    (("sweep=jepa_weight",), "jepa.weight=0: is already an arm of this study"),
    (("trainer.max_steps=abc",), "trainer.max_steps=abc: expected a whole number"),
    (("trainer.max_time=9",), "but they are 6 and 9;"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(plan, words, message):
    done = plan("study=ablation", "objective=lewm", *words)
    assert done.code == 2
    assert message in done.error
    assert not done.launched


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seed=1,2",), "seed=1,2: more than one run; add -m, or use study= or sweep="),
        (
            ("+study=ablation", "seed=1,2"),
            "+study=ablation: has a default already; without the +,",
        ),
        (("sweep=jepa_weigth", "seed=1,2"), "sweep=jepa_weigth: no such option"),
        (
            ("-m", "hydra/launcher=job_lib"),
            "hydra/launcher=job_lib: no such option; did you mean joblib?",
        ),
        (("-m", "objective=patch", "jepa.weight=0,a"), "jepa.weight=a: expected a number"),
        (("-m", "seed=1,1.5"), "seed=1,1.5: expected whole numbers"),
        (("-m", "seed=-1,2"), "seed=-1: a seed is a whole number from 0 to 4294967295"),
        (("-m", "seed=1,4294967296"), "seed=4294967296: a seed is a whole number from 0"),
        (("-m", "seed=3,1,3"), "seed=3,1,3: 3 is given twice"),
        (("-m", "seed=1,2", "ce_weight=-1"), "ce_weight=-1.0: expected a number of at least 0"),
        (
            ("-m", "jepa.weight=0.1", "seed=1,2"),
            "jepa.weight=0.1: objective=none has no loss to weigh",
        ),
        (
            ("sweep=jepa_weight",),
            "jepa.weight=0,0.05,0.1,0.15: objective=none has no loss to weigh",
        ),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line_before_anything_runs(plan, words, message):
    done = plan(*words)
    assert done.code == 2
    assert message in done.error
    assert not done.launched


@pytest.mark.parametrize("word", ["compile=true", "data.order=stream", "data.seed=7"])
def test_an_arm_on_another_code_path_or_data_is_refused(plan, word):
    """A control must share the treatment's seeds, data order and compilation."""
    arm = f"+study.arms.other={{role:other,set:['jepa.weight=0.2','{word}'],changes:[jepa.weight]}}"
    done = plan("study=ablation", "objective=patch", arm, *WITHOUT_OTHERS)
    assert done.code == 2
    assert f"study.arms.other: differs from the treatment in {word.split('=')[0]} (" in done.error


def test_an_arm_that_the_command_line_overrules_is_refused(plan):
    """Planted bug: an arm whose setting comes before the command line's, and so loses to it."""
    arm = "+study.arms.low={role:weight_0,set:[],changes:[jepa.weight]}"
    done = plan("study=ablation", "objective=lewm", "jepa.weight=0.3", arm, *WITHOUT_OTHERS)
    assert done.code == 2
    assert "study.arms.low: declares a change of jepa.weight" in done.error
    assert "same run" in done.error
    assert not done.launched


def test_an_arm_that_changes_more_than_it_says_is_refused(plan):
    arm = "+study.arms.wide={role:other,set:['jepa.weight=0.2','ce_weight=0.5'],changes:[jepa.weight]}"
    done = plan("study=ablation", "objective=patch", arm, *WITHOUT_OTHERS)
    assert done.code == 2
    assert (
        "study.arms.wide: differs from the treatment in ce_weight (1.0 there, 0.5 here)"
        in done.error
    )
    assert not done.launched
