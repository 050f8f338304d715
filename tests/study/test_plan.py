"""The plan of a sweep or a study: jobs, groups, comparisons, refusals; nothing is trained."""

from __future__ import annotations

import math
import re

import pytest

from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.study.arms import ArmSpec, below, check_declared, differences
from jepa_lm.study.planner import slug
from jepa_lm.study.roles import BASELINES, is_gate
from jepa_lm.training.flops import flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.nested import flat
from jepa_lm.utils.paths import CONF
from jepa_lm.utils.provenance import config_hash
from tests.conftest import REPO
from tests.study.conftest import RIVALS, WITHOUT_OTHERS

DOCS = REPO / "docs"

PUBLISHED = ("as_published", "record_script")
"""Arms of patch, whose predictor is in no group of the optimizer."""


def groups(planned) -> dict[str, dict[str, str]]:
    return {g.name: dict(g.runs) for g in planned.plan.groups}


def against(planned, of: str = "treatment") -> dict[str, str]:
    return {c.role: c.against for c in planned.plan.comparisons if c.of == of}


def settings(planned, folder: str) -> dict[str, str]:
    """Return the last value for each key of a job."""
    job = next(j for j in planned.plan.jobs if j.folder == folder)
    return dict(word.split("=", 1) for word in job.overrides)


def job_of(planned, folder: str) -> list[str]:
    """Return the words of a job that `train.py` would get."""
    job = next(j for j in planned.plan.jobs if j.folder == folder)
    return [word for word in job.overrides if not word.startswith("hydra.")]


def spent(compose, words: list[str]) -> float:
    """Return the FLOPs per token of a run with both losses at work, counted apart from the plan."""
    config = resolve(compose("train", *words))
    clock = ProgressClock(max_steps=config["trainer"]["max_steps"], max_time=None)
    return sum(flops_per_token(LanguageModelTask(config, clock)).values())


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
    seeds = [[word for word in job if word.startswith("seed=")] for job in fewer.launched]
    assert seeds == [["seed=7"]] * 4


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
    """Otherwise control and treatment would be the same run."""
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


@pytest.mark.slow
def test_every_objective_has_its_controls_and_all_share_none(plan):
    """The study of docs/studies.md."""
    objectives = ("vicreg", "patch", "lewm", "chunk", "llm_jepa")
    words = ("experiment=laptop", f"objective={','.join(objectives)}", "seed=1")
    done = plan("study=ablation", *words)
    assert done.code == 0, done.error
    controls = {name: against(done, f"objective-{name}/treatment") for name in objectives}
    assert [len(controls[name]) for name in objectives] == [6, 6, 4, 6, 2]
    without_chunk = [controls[name]["none"] for name in objectives if name != "chunk"]
    assert without_chunk == ["none"] * 4
    # chunk is the only objective that injects; for it, these runs are the model without its injector.
    assert groups(done)["no_module"] == groups(done)["none"] == {"1": "none/seed-1"}


def test_a_weight_that_is_swept_has_one_control(plan):
    done = plan("study=ablation", "objective=patch", "jepa.weight=0.1,0.3", "seed=1")
    assert done.code == 0, done.error
    assert {
        a["none"] for a in (against(done, f"jepa.weight-{w}/treatment") for w in (0.1, 0.3))
    } == {"none"}
    assert len([j for j in done.plan.jobs if j.folder.startswith("weight_0")]) == 1


@pytest.mark.slow
def test_a_scaled_arm_of_each_swept_value(plan):
    arm = "+study.arms.half={role:half,scale:{jepa.weight:0.5}}"
    done = plan("study=ablation", "objective=patch", "jepa.weight=0.1,0.3", arm, *WITHOUT_OTHERS)
    assert done.code == 0, done.error
    given = {c.of: c.differences["jepa.weight"] for c in done.plan.comparisons if c.role == "half"}
    assert given == {
        "jepa.weight-0.1/treatment": (0.05, 0.1),
        "jepa.weight-0.3/treatment": (0.15, 0.3),
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
    done = plan(
        "study=ablation", "objective=lewm", "study.arms.none=null", "seed=1,2", *WITHOUT_OTHERS
    )
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
    assert plan("study=ablation", "objective=lewm", *timed, *WITHOUT_OTHERS).plan.match == "time"


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
    arm = ArmSpec("x", role="other", changes=["jepa", "model.injector"])
    with pytest.raises(UserError, match=r"declares a change of model\.injector"):
        check_declared(arm, {"jepa.weight": (0, 1)})
    check_declared(arm, {"jepa.weight": (0, 1), "model.injector.dim": (1, 2)})


def test_a_declared_key_covers_itself_and_what_is_below_it_alone():
    arm = ArmSpec("x", role="other", changes=["jepa.weight"])
    for key in ("jepa.weight", "jepa.weight.start"):
        check_declared(arm, {key: (0, 1)})
        with pytest.raises(UserError, match=r"differs from the treatment in jepa\.weight_decay"):
            check_declared(arm, {key: (0, 1), "jepa.weight_decay": (0, 1)})


@pytest.mark.parametrize("objective", ["patch", "chunk"])
def test_controls_differ_in_nothing_but_the_objective(plan, objective):
    """Equal seeds, data order and compilation in all of conf/study; chunk has controls of its own."""
    done = plan("study=ablation", f"objective={objective}", "data.seq_len=32", "seed=1,2")
    assert done.code == 0, done.error
    for comparison in done.plan.comparisons:
        own = ("optimizer.freeze",) if comparison.role in PUBLISHED else ()
        other = [
            k for k in comparison.differences if not below(k, ("jepa", "model.injector", *own))
        ]
        assert other == [], comparison.against
        assert set(groups(done)[comparison.against]) == {"1", "2"}
    if objective == "chunk":
        roles = against(done)
        assert [roles[r] for r in ("weight_0", "loss_only", "no_module")] == [
            "injection_only",
            "loss_only",
            "no_module",
        ]
        assert "none" not in roles
        assert done.plan.identities == ()
    else:
        differences = {c.role: dict(c.differences) for c in done.plan.comparisons}
        frozen = {"optimizer.freeze": (["objective.predictor.*"], [])}
        assert differences["as_published"] == {
            "jepa.predictor.start": ("default", "orthogonal"),
            "jepa.predictor.output_start": (None, "orthogonal"),
            **frozen,
        }
        assert differences["record_script"] == {
            "jepa.predictor.output_start": ("zero", "orthogonal"),
            **frozen,
        }


def test_none_has_no_weight_and_runs_once(plan):
    done = plan("-m", "objective=none,patch", "jepa.weight=0,0.1,0.3")
    assert done.code == 0, done.error
    assert [g.name for g in done.plan.groups][:2] == [
        "objective-none",
        "objective-patch_jepa.weight-0",
    ]
    assert len(done.plan.jobs) == 4
    assert not any("weight" in word for word in done.launched[0])
    assert {c.of for c in done.plan.comparisons} == {
        "objective-patch_jepa.weight-0.1",
        "objective-patch_jepa.weight-0.3",
    }
    note = (
        "objective=none has no loss to weigh: it runs without jepa.weight=0,0.1,0.3, so 3 combinations with "
        "it are run as one"
    )
    assert done.plan.notes == (note,)
    assert f"warning: {note}" in done.told


def test_one_weight_for_several_objectives_is_none_of_nones(plan):
    done = plan("-m", "objective=none,patch", "jepa.weight=0.1")
    assert done.code == 0, done.error
    assert done.plan.notes == (
        "objective=none has no loss to weigh: it runs without jepa.weight=0.1",
    )
    assert [g.settings for g in done.plan.groups] == [{"objective": "none"}, {"objective": "patch"}]


def test_a_latent_objective_meets_its_rival(plan, compose):
    """At equal steps, and with as many FLOPs."""
    done = plan(
        "study=ablation", "objective=nextlat", "trainer.max_steps=100", "seed=1", WITHOUT_OTHERS[0]
    )
    assert done.code == 0, done.error
    roles = against(done)
    assert roles.keys() == {"none", "rival", "rival_equal_flops"}
    assert roles["rival"] == "rival_sequential"
    given = settings(done, "rival_sequential/seed-1")
    assert (given["jepa.weight"], given["tokens"]) == ("0", "mtp_sequential")
    assert given["trainer.max_steps"] == "100"
    treatment, rival = (
        spent(compose, job_of(done, f"{arm}/seed-1")) for arm in ("treatment", roles["rival"])
    )
    steps = int(settings(done, "rival_sequential_equal_flops/seed-1")["trainer.max_steps"])
    assert steps * rival == pytest.approx(100 * treatment, rel=0.01)
    assert 50 < steps < 100  # a block costs more than a transition


ONE_PASS = (
    "trainer.max_steps=null",
    "trainer.max_epochs=1",
    "data.seq_len=64",
    "data.batch_tokens=512",
    "data.train_tokens=51201",
)
"""A budget of one pass, which is 100 steps."""


def test_at_equal_flops_the_control_trains_longer_and_has_a_say(plan, compose):
    few = ("seed=1", "trainer.val_check_interval=20", *ONE_PASS, *WITHOUT_OTHERS)
    done = plan("study=ablation", "objective=lse_mtp", "study.match=flops", *few)
    assert done.code == 0, done.error
    (longer,) = [c for c in done.plan.comparisons if c.role == "none_equal_flops"]
    assert is_gate(longer.role, longer.gate)
    steps = int(settings(done, "none_equal_flops/seed-1")["trainer.max_steps"])
    treatment, none = (
        spent(compose, job_of(done, f"{arm}/seed-1")) for arm in ("treatment", "none_equal_flops")
    )
    assert steps * none == pytest.approx(100 * treatment, rel=0.01)
    assert steps > 110
    budgets = [
        settings(done, f"{arm}/seed-1")["trainer.max_epochs"]
        for arm in ("none", "none_equal_flops")
    ]
    assert budgets == ["1", "null"]
    interval = int(settings(done, "none_equal_flops/seed-1")["trainer.val_check_interval"])
    assert math.ceil(steps / interval) == 100 / 20
    assert "none_equal_flops" in {c.role for c in done.plan.comparisons}
    without = plan("study=ablation", "objective=lse_mtp", *few, folder=done.folder.with_name("b"))
    assert "none_equal_flops" not in {c.role for c in without.plan.comparisons}
    assert (
        without.plan.not_applicable["treatment"]["none_equal_flops"]
        == "only with study.match=flops"
    )


@pytest.mark.slow
def test_the_rival_of_a_masked_view_has_that_view(plan):
    few = ("jepa.context.view.spans=2", "study.arms.rival_masked_equal_flops=null")
    done = plan("study=ablation", "objective=vicreg", *few, *WITHOUT_OTHERS[:3])
    assert done.code == 0, done.error
    assert against(done) == {"none": "none", "rival": "rival_masked"}
    found = done.plan.comparisons[-1].differences
    assert found["tokens.view.spans"] == (2, "(absent)")
    assert found["tokens.view._target_"][0].endswith("SpanMask")


def test_the_rival_of_several_horizons_predicts_at_the_same_ones_with_the_same_weight(plan):
    few = ("study.arms.rival_parallel_equal_flops=null", *WITHOUT_OTHERS[:3])
    done = plan("study=ablation", "objective=lse_mtp", *few)
    assert done.code == 0, done.error
    assert against(done) == {"none": "none", "rival": "rival_parallel"}
    found = done.plan.comparisons[-1].differences
    assert found["tokens.offsets"] == ([1, 2], "(absent)")
    # The mean of two losses, twice: each horizon weighs 1, as in jepa.weight=2.
    assert (found["tokens.weight"][0], found["tokens.weights"][0]) == (2, None)
    assert found["tokens.head.blocks"][0] == 2


def test_an_objective_on_tokens_has_controls_of_its_own(plan):
    done = plan("study=ablation", "objective=mtp", "seed=1")
    assert done.code == 0, done.error
    assert against(done) == {"none": "no_tokens", "placebo": "tokens_placebo"}
    assert [i.runs for i in done.plan.identities] == [
        ("tokens_weight_0/seed-1", "no_tokens/seed-1")
    ]
    assert done.plan.not_applicable["treatment"]["placebo"] == "nothing to change: no jepa._target_"


def test_weights_of_token_losses_are_swept_like_those_of_latent_ones(plan):
    done = plan("-m", "objective=none,mtp", "tokens.weight=0,0.5")
    assert done.code == 0, done.error
    found = {(c.of, c.against, c.role) for c in done.plan.comparisons}
    assert found == {
        ("objective-mtp_tokens.weight-0.5", "objective-none", "none"),
        ("objective-mtp_tokens.weight-0.5", "objective-mtp_tokens.weight-0", "weight_0"),
    }
    assert done.plan.notes[0].startswith("objective=none has no loss to weigh: it runs without to")
    refused = plan("-m", "objective=mtp,top", "jepa.weight=0.1,0.2")
    assert refused.code == 2
    assert "jepa.weight=0.1,0.2: objective=mtp,top has no loss to weigh" in refused.error


def documented_gates() -> dict[str, tuple[str, set[str]]]:
    """Return baseline and gates of each objective as docs/studies.md has them."""
    text = (DOCS / "studies.md").read_text(encoding="utf-8")
    table = text.partition("| objective | baseline | gates |")[2].partition("\n\n")[0]
    found = {}
    for row in table.splitlines()[2:]:
        objectives, baseline, gates = (
            re.findall("`([^`]+)`", cell) for cell in row.split("|")[1:4]
        )
        found |= dict.fromkeys(objectives, (baseline[0], set(gates)))
    return found


def test_the_documentation_names_every_objective():
    named = (p.relative_to(CONF / "objective") for p in (CONF / "objective").rglob("*.yaml"))
    names = {path.with_suffix("").as_posix() for path in named}
    assert documented_gates().keys() == names - {"base", "none"}


OTHER_DATA = {
    "distil": ("jepa.target.path=teacher.ckpt",),
    "distil_law": ("jepa.target.path=teacher.ckpt",),
    "oracle_law": ("data=hmm",),
    "llm_jepa_pairs": ("data=regex",),
}
"""Objectives that need more than text, and what."""


@pytest.mark.slow
def test_the_documentation_knows_baseline_and_gates_of_every_objective(plan, tmp_path):
    known = documented_gates()
    left_out = ("prediction_only", *(arm for arm in RIVALS if arm.endswith("_equal_flops")))
    few = [f"study.arms.{arm}=null" for arm in left_out]
    asked = {",".join(name for name in known if name not in OTHER_DATA): (), **OTHER_DATA}
    found = {}
    for i, (names, more) in enumerate(asked.items()):
        deep = "model.backbone.layers=6"  # some objectives read blocks that few models have
        words = ("study=ablation", f"objective={names}", "seed=1", deep, *more, *few)
        own_data = any(word.startswith("data=") for word in more)
        done = plan(*words, folder=tmp_path / f"study{i}", small=not own_data)
        assert done.code == 0, done.error
        for name in names.split(","):
            of_several = f"{slug({'objective': name})}/treatment"
            place = of_several if "," in names else "treatment"
            of = [c for c in done.plan.comparisons if c.of == place]
            baseline = next(c for role in BASELINES for c in of if c.role == role)
            gates = {arm_of(c.against) for c in of if is_gate(c.role, c.gate)}
            found[name] = (arm_of(baseline.against), gates)
    assert found == known


def arm_of(group: str) -> str:
    return group.rpartition("/")[2]
