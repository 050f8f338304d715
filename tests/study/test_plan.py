"""What a sweep or a study is going to run: jobs, groups, comparisons, refusals; nothing is trained."""

from __future__ import annotations

import json

import pytest

from jepa_lm.errors import UserError
from jepa_lm.records import config_hash
from jepa_lm.study.arms import Arm, below, check_declared, differences, flat
from jepa_lm.study.plan import slug


def groups(planned) -> dict[str, dict[str, str]]:
    return {g.name: dict(g.runs) for g in planned.plan.groups}


def against(planned, of: str = "treatment") -> dict[str, str]:
    return {c.role: c.against for c in planned.plan.comparisons if c.of == of}


def settings(planned, folder: str) -> dict[str, str]:
    """The last word for each key of a job."""
    job = next(j for j in planned.plan.jobs if j.folder == folder)
    return dict(word.split("=", 1) for word in job.overrides)


def test_a_sweep_is_every_combination_in_folders_named_after_what_is_swept(plan):
    done = plan("-m", "objective=patch", "jepa.weight=0,0.05,0.1", "seed=range(1,4)")
    assert done.code == 0
    assert len(done.launched) == 9
    runs = {str(s): f"jepa.weight-0.05/seed-{s}" for s in (1, 2, 3)}
    assert groups(done)["jepa.weight-0.05"] == runs
    assert {(c.of, c.against, c.role) for c in done.plan.comparisons} == {
        ("jepa.weight-0.05", "jepa.weight-0", "weight_0"),
        ("jepa.weight-0.1", "jepa.weight-0", "weight_0"),
    }
    (only,) = {tuple(c.differences) for c in done.plan.comparisons}
    assert only == ("jepa.weight",)
    assert done.plan.comparisons[0].differences["jepa.weight"] == (0, 0.05)


def test_a_sweep_file_gives_values_and_the_command_line_wins(plan):
    from_file = plan("sweep=jepa_weight", "objective=patch")
    assert len(from_file.launched) == 12
    fewer = plan("sweep=jepa_weight", "objective=patch", "seed=7", folder=from_file.folder / "b")
    assert sorted(groups(fewer)) == [f"jepa.weight-{w}" for w in ("0", "0.05", "0.1", "0.15")]
    assert all(not word.startswith("sweep=") for job in fewer.launched for word in job)


def test_a_control_is_compared_where_the_rest_is_the_same(plan):
    done = plan("-m", "objective=none,patch", "model.dim=32,64", "seed=1,2")
    pairs = {(c.of, c.against) for c in done.plan.comparisons}
    assert pairs == {
        (f"objective-patch_model.dim-{d}", f"objective-none_model.dim-{d}") for d in (32, 64)
    }


def test_a_study_has_the_treatment_and_matched_controls(plan):
    done = plan("study=ablation", "objective=lewm", "seed=1,2,3")
    assert done.code == 0, done.error
    assert against(done) == {
        "none": "none",
        "placebo": "placebo",
        "prediction_only": "prediction_only",
        "regularizers_only": "regularizers_only",
    }
    assert {len(runs) for name, runs in groups(done).items() if name != "weight_0"} == {3}
    assert [i.runs for i in done.plan.identities] == [("weight_0/seed-1", "none/seed-1")]
    assert len(done.launched) == 5 * 3 + 1


def test_arms_win_over_the_command_line(plan):
    """Trap 37."""
    done = plan("study=ablation", "objective=lewm", "jepa.weight=0.3", "seed=1,2")
    assert done.code == 0, done.error
    assert settings(done, "treatment/seed-1")["jepa.weight"] == "0.3"
    assert settings(done, "weight_0/seed-1")["jepa.weight"] == "0"
    assert "jepa.weight" not in settings(done, "none/seed-1")
    for comparison in done.plan.comparisons:
        assert comparison.differences, comparison.against
    job = next(job for job in done.launched if "hydra.sweep.subdir=weight_0/seed-1" in job)
    assert [word for word in job if word.startswith("jepa.weight=")] == ["jepa.weight=0"]
    hashes = [job.config_hash for job in done.plan.jobs]
    assert len(set(hashes)) == len(hashes)


def test_an_arm_that_the_command_line_overrules_is_refused(plan):
    """The planted bug of trap 37: an arm that leaves the command line's word in the last place."""
    arm = "+study.arms.low={role:weight_0,set:[],changes:[jepa.weight]}"
    done = plan("study=ablation", "objective=lewm", "jepa.weight=0.3", arm)
    assert done.code == 2
    assert "study.arms.low: declares a change of jepa.weight" in done.error
    assert "same run" in done.error
    assert not done.launched


def test_an_arm_that_changes_more_than_it_says_is_refused(plan):
    arm = "+study.arms.wide={role:other,set:['jepa.weight=0.2','ce_weight=0.5'],changes:[jepa.weight]}"
    done = plan("study=ablation", "objective=patch", arm)
    assert done.code == 2
    assert (
        "study.arms.wide: differs from the treatment in ce_weight (1.0 there, 0.5 here)"
        in done.error
    )
    assert not done.launched


def test_every_objective_has_its_controls_and_all_share_none(plan):
    """The study of docs/studies.md."""
    objectives = ("vicreg", "patch", "lewm", "chunk", "llm_jepa")
    words = ("experiment=laptop", f"objective={','.join(objectives)}", "seed=1")
    done = plan("study=ablation", *words)
    assert done.code == 0, done.error
    controls = {name: against(done, f"objective-{name}/treatment") for name in objectives}
    assert [len(controls[name]) for name in objectives] == [4, 5, 4, 6, 2]
    without_chunk = [controls[name]["none"] for name in objectives if name != "chunk"]
    assert without_chunk == ["none"] * 4
    # To chunk, the only one that injects, these runs are the model without its injector.
    assert groups(done)["no_module"] == groups(done)["none"] == {"1": "none/seed-1"}


def test_a_weight_that_is_swept_has_one_control(plan):
    done = plan("study=ablation", "objective=patch", "jepa.weight=0.1,0.3", "seed=1")
    assert done.code == 0, done.error
    assert {
        a["none"] for a in (against(done, f"jepa.weight-{w}/treatment") for w in (0.1, 0.3))
    } == {"none"}
    assert len([j for j in done.plan.jobs if j.folder.startswith("weight_0")]) == 1


def test_a_scaled_arm_of_each_swept_value(plan):
    arm = "+study.arms.half={role:half,scale:{jepa.weight:0.5}}"
    done = plan("study=ablation", "objective=patch", "jepa.weight=0.1,0.3", arm)
    assert done.code == 0, done.error
    given = {c.of: c.differences["jepa.weight"] for c in done.plan.comparisons if c.role == "half"}
    assert given == {
        "jepa.weight-0.1/treatment": (0.05, 0.1),
        "jepa.weight-0.3/treatment": (0.15, 0.3),
    }


def test_chunk_has_three_controls_of_its_own(plan):
    done = plan("study=ablation", "objective=chunk", "data.seq_len=32", "seed=1,2")
    assert done.code == 0, done.error
    roles = against(done)
    assert roles["weight_0"] == "injection_only"
    assert roles["loss_only"] == "loss_only"
    assert roles["no_module"] == "no_module"
    assert "none" not in roles
    assert done.plan.identities == ()


def test_the_published_frozen_predictor_is_an_arm_of_patch(plan):
    done = plan("study=ablation", "objective=patch", "seed=1,2")
    comparison = next(c for c in done.plan.comparisons if c.role == "as_published")
    assert dict(comparison.differences) == {
        "jepa.predictor.output_start": ("zero", "orthogonal"),
        "optimizer.freeze": (["objective.predictor.*"], []),
    }


def test_what_does_not_apply_is_told(plan):
    done = plan("study=ablation", "objective=llm_jepa")
    assert done.code == 0, done.error
    reasons = done.plan.not_applicable["treatment"]
    assert reasons["prediction_only"] == "nothing to change: no jepa.regularizers"
    assert reasons["no_module"] == "only for chunk"


def test_an_arm_set_to_null_is_left_out(plan):
    done = plan("study=ablation", "objective=lewm", "study.arms.placebo=null")
    assert "placebo" not in against(done)


def test_without_none_weight_0_is_the_control_of_every_seed(plan):
    done = plan("study=ablation", "objective=lewm", "study.arms.none=null", "seed=1,2")
    assert against(done)["weight_0"] == "weight_0"
    assert len(groups(done)["weight_0"]) == 2
    assert done.plan.identities == ()


def test_the_same_on_both_sides_differs_in_draws_alone(plan):
    done = plan("study=same", "objective=patch", "seed=1,2")
    assert done.code == 0, done.error
    assert groups(done) == {
        "treatment": {"1": "treatment/seed-1", "2": "treatment/seed-2"},
        "again": {"1": "again/seed-1001", "2": "again/seed-1002"},
    }


def test_fewer_steps_on_one_side(plan):
    done = plan("study=fewer_steps", "trainer.max_steps=450")
    assert done.code == 0, done.error
    assert settings(done, "all_steps/seed-1337")["trainer.max_steps"] == "500"


def test_equal_time_on_request(plan):
    timed = ("study.match=time", "trainer.max_time=5", "trainer.max_steps=null")
    assert plan("study=ablation", "objective=lewm", *timed).plan.match == "time"


MISTAKES = [
    (("study.match=time",), "study.match=time: needs trainer.max_time and trainer.max_steps=null"),
    (
        ("trainer.max_time=5",),
        "study.match=steps: needs trainer.max_steps and trainer.max_time=null",
    ),
    (("study.match=flops",), "study.match=flops: one of steps, time"),
    (("+study.arm=1",), "study.arm: a study has no such setting; did you mean study.arms?"),
    (("+study.arms.placebo.sett=[a]",), "did you mean study.arms.placebo.set?"),
    (("study.arms.weight_0.same_as=non",), "same_as=non: there is no such arm"),
    (("study.arms.placebo.set=abc",), "study.arms.placebo.set=abc: expected"),
    (("seed=a,b",), "seed=a,b: expected whole numbers"),
    (("jepa.weight=interval(0,1)",), "jepa.weight: an interval is for a search"),
    (("jepa.weight=interval(1,0)",), "the first number has to be less than the second"),
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
    (("jepa.weight=0",), "jepa.weight=0: is an arm of this study already"),
    (("sweep=jepa_weight",), "jepa.weight=0: is an arm of this study already"),
    (("trainer.max_steps=abc",), "trainer.max_steps=abc: expected a whole number"),
    (("trainer.max_time=9",), "and they are 6 and 9;"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(plan, words, message):
    done = plan("study=ablation", "objective=lewm", *words)
    assert done.code == 2
    assert message in done.error
    assert not done.launched


def finish(done, folder: str, status: str = "finished", **changed) -> None:
    """As if the job had run."""
    run = done.folder / folder
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    config = json.loads((done.folder / "configs.json").read_text())[folder] | changed
    (run / "config.json").write_text(json.dumps(config))
    val = {"bpb": 2.0, "nll": 3.0} if status == "finished" else None
    (run / "summary.json").write_text(json.dumps({"status": status, "val": val}))


@pytest.fixture
def keep_configs(monkeypatch):
    """Writes the resolved configs of the jobs beside the plan."""
    from jepa_lm.study import execution

    check = execution.check_unchanged

    def also_write(manifest, configs, folder):
        check(manifest, configs, folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "configs.json").write_text(json.dumps(configs))

    monkeypatch.setattr(execution, "check_unchanged", also_write)


def test_finished_jobs_stay_begun_ones_go_on_failed_ones_again(plan, keep_configs):
    words = ("-m", "objective=patch", "jepa.weight=0.05,0.1", "seed=1,2")
    first = plan(*words)
    finish(first, "jepa.weight-0.05/seed-1")
    finish(first, "jepa.weight-0.05/seed-2", "interrupted")
    finish(first, "jepa.weight-0.1/seed-1", "failed")
    again = plan(*words)
    assert again.code == 0, again.error
    subdirs = [w.split("=")[1] for job in again.launched for w in job if "sweep.subdir" in w]
    assert subdirs == [
        "jepa.weight-0.05/seed-2",
        "jepa.weight-0.1/seed-1",
        "jepa.weight-0.1/seed-2",
    ]
    assert ["ckpt_path=auto" in job for job in again.launched] == [True, True, False]


def test_a_changed_job_is_refused_with_the_difference(plan, keep_configs):
    words = ("-m", "objective=patch", "jepa.weight=0.05,0.1", "seed=1")
    first = plan(*words)
    finish(first, "jepa.weight-0.1/seed-1")
    again = plan(*words, "trainer.max_steps=9")
    assert again.code == 2
    assert "jepa.weight-0.1/seed-1 was run with another config" in again.error
    assert "trainer.max_steps was 6, now 9" in again.error
    assert not again.launched


def test_more_values_are_more_jobs(plan, keep_configs):
    first = plan("-m", "objective=patch", "jepa.weight=0.05,0.1", "seed=1")
    finish(first, "jepa.weight-0.1/seed-1")
    more = plan("-m", "objective=patch", "jepa.weight=0.05,0.1,0.2", "seed=1,2")
    assert len(more.launched) == 5, (
        "the one that is finished stays, though seeds were not swept then"
    )


def test_names_of_folders_are_safe_and_distinct():
    assert slug({}) == "all"
    assert slug({"jepa.weight": "0.05", "seed": "1"}) == "jepa.weight-0.05_seed-1"
    odd = [slug({"data.path": text}) for text in ("a/b", "a b", "a=b", "a,b", "x" * 300, "x" * 301)]
    assert len(set(odd)) == len(odd)
    assert all(not set(name) & set("/=, ") and len(name) < 100 for name in odd)


def test_differences_are_of_what_is_computed():
    one = {"data": {"cache_dir": "a", "n": 1}, "trainer": {}, "paths": {"run_dir": "a"}, "seed": 1}
    two = {"data": {"cache_dir": "b", "n": 2}, "trainer": {}, "paths": {"run_dir": "b"}, "seed": 1}
    assert differences(one, two) == {"data.n": (1, 2)}
    assert (config_hash(one) == config_hash(two)) is False
    assert flat({"a": {"b": {}, "c": [1]}}) == {"a.b": {}, "a.c": [1]}


def test_every_declared_key_has_to_differ():
    arm = Arm("x", role="other", changes=["jepa", "model.injector"])
    with pytest.raises(UserError, match=r"declares a change of model\.injector"):
        check_declared(arm, {"jepa.weight": (0, 1)})
    check_declared(arm, {"jepa.weight": (0, 1), "model.injector.dim": (1, 2)})


def test_wandb_gets_the_study_and_the_arm(plan):
    done = plan("study=ablation", "objective=lewm", "logger=wandb", "seed=1,2")
    job = next(job for job in done.launched if "hydra.sweep.subdir=placebo/seed-2" in job)
    assert "logger.wandb.group='ablation sweep'" in job
    assert "logger.wandb.name='placebo/seed-2'" in job


@pytest.mark.parametrize("objective", ["patch", "chunk"])
def test_controls_differ_in_nothing_but_the_objective(plan, objective):
    """Trap 25: equal seeds, data order and compilation, whatever conf/study declares."""
    done = plan("study=ablation", f"objective={objective}", "data.seq_len=32", "seed=1,2")
    assert done.code == 0, done.error
    for comparison in done.plan.comparisons:
        own = ("optimizer.freeze",) if comparison.role == "as_published" else ()
        other = [
            k for k in comparison.differences if not below(k, ("jepa", "model.injector", *own))
        ]
        assert other == [], comparison.against
        assert set(groups(done)[comparison.against]) == {"1", "2"}


@pytest.mark.parametrize("word", ["compile=true", "data.order=stream", "data.seed=7"])
def test_an_arm_on_another_code_path_or_data_is_refused(plan, word):
    """Trap 25."""
    arm = f"+study.arms.other={{role:other,set:['jepa.weight=0.2','{word}'],changes:[jepa.weight]}}"
    done = plan("study=ablation", "objective=patch", arm)
    assert done.code == 2
    assert f"study.arms.other: differs from the treatment in {word.split('=')[0]} (" in done.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seed=1,2",), "seed=1,2: more than one run; add -m, or a study= or sweep="),
        (
            ("+study=ablation", "seed=1,2"),
            "+study=ablation: there is one by default; without the +,",
        ),
        (("sweep=jepa_weigth", "seed=1,2"), "sweep=jepa_weigth: no such option"),
        (
            ("-m", "hydra/launcher=job_lib"),
            "hydra/launcher=job_lib: no such option; did you mean joblib?",
        ),
        (("-m", "objective=patch", "jepa.weight=0,a"), "jepa.weight=a: expected a number"),
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


def test_weights_of_none_are_controls_beside_those_of_an_objective(plan):
    done = plan("-m", "objective=none,patch", "jepa.weight=0,0.1")
    assert done.code == 0, done.error
    assert {c.of for c in done.plan.comparisons} == {"objective-patch_jepa.weight-0.1"}


def test_a_folder_holds_one_sweep_or_study(plan):
    first = plan("study=ablation", "objective=patch", "seed=1,2,3")
    other = plan("-m", "objective=patch", "seed=1,2,3")
    assert other.code == 2
    assert "holds the study ablation, and this is the sweep train" in other.error
    assert not other.launched
    assert other.plan == first.plan


@pytest.mark.parametrize(("seeds", "few"), [("1,2", True), ("1,2,3", False)])
def test_a_study_of_few_seeds_is_warned_of(plan, seeds, few):
    done = plan("study=ablation", "objective=patch", f"seed={seeds}")
    warned = [line for line in done.told if "a verdict needs 3 or more" in line]
    assert [line.startswith("warning: seed: 2 of them;") for line in warned] == [True] * few
