"""Tuning before a study: equal draws for all arms, the best one chosen, and what may not be tuned."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from jepa_lm.study import manifest
from jepa_lm.study.compiled_alike import compiled_alike
from jepa_lm.study.manifest import Comparison, Group, Identity, Job, Manifest, Tuned, Untuned
from jepa_lm.study.tuning import Tuning, chosen, drawn, read_tuning, words_of
from jepa_lm.utils import compiling
from jepa_lm.utils.errors import SweepError, UserError
from jepa_lm.utils.provenance import config_hash
from tests.study.conftest import WITHOUT_OTHERS
from tests.study.sweeps import write_run

TUNING = Tuning(
    text="novel",
    draws=8,
    seeds=[1001],
    scale={"optimizer.*.lr": [0.25, 4.0], "jepa.weight": [0.1, 10.0]},
    range={"model.dropout": [0.0, 0.3]},
)
CONFIG = {
    "optimizer": {"matrices": {"lr": 0.02}, "vectors": {"lr": 0.01, "eps": 1e-8}},
    "model": {"dropout": 0.0, "dim": 64},
    "jepa": {"weight": 0.5},
}


def values(*arguments) -> dict[str, float]:
    return {key: value for of in drawn(*arguments).values() for key, value in of.items()}


def test_draws_are_the_same_factors_for_all_arms():
    none = {**CONFIG, "jepa": {"weight": 0.0}}
    for draw in range(TUNING.draws):
        ours, theirs = values(CONFIG, TUNING, draw), values(none, TUNING, draw)
        assert {k: v for k, v in ours.items() if k != "jepa.weight"} == theirs
    assert values(CONFIG, TUNING, 0) == {}
    assert drawn(CONFIG, TUNING, 0).keys() == {*TUNING.axes}
    one = values(CONFIG, TUNING, 1)
    assert one.keys() == {
        "optimizer.matrices.lr",
        "optimizer.vectors.lr",
        "jepa.weight",
        "model.dropout",
    }
    assert one["optimizer.matrices.lr"] / 0.02 == pytest.approx(one["optimizer.vectors.lr"] / 0.01)


def test_draws_cover_their_ranges_and_more_of_them_keep_the_first():
    many = [values(CONFIG, TUNING, draw) for draw in range(1, 200)]
    for key, low, high in (
        ("optimizer.matrices.lr", 0.005, 0.08),
        ("jepa.weight", 0.05, 5.0),
        ("model.dropout", 0.0, 0.3),
    ):
        found = [of[key] for of in many]
        assert low <= min(found) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(found) <= high
    below = sum(v["optimizer.matrices.lr"] < 0.02 for v in many) / len(many)
    assert below == pytest.approx(0.5, abs=0.02)  # uniform in the logarithm
    more = replace(TUNING, draws=100)
    assert drawn(CONFIG, more, 5) == drawn(CONFIG, TUNING, 5)


def test_what_an_arm_is_for_is_not_drawn_for_it():
    assert "jepa.weight" not in values(CONFIG, TUNING, 3, {"jepa.weight"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": [3]}, r"study\.tuning\.seeds=\[3\]: 3 is one of the study"),
        ({"seeds": []}, r"study\.tuning\.seeds=\[\]: at least one"),
        ({"draws": 0}, r"study\.tuning\.draws=0"),
        ({"scale": {"a.lr": [0.0, 2.0]}}, r"study\.tuning\.scale\.a\.lr=.*both above 0"),
        ({"range": {"a": [2.0, 1.0]}}, r"study\.tuning\.range\.a=.*the first less than"),
        ({"range": {"a": [1.0]}}, r"study\.tuning\.range\.a=.*two numbers"),
        ({"scale": {}, "range": {}}, r"study\.tuning\.draws=8: .* are empty"),
        ({"drws": 3}, r"study\.tuning\.drws.*draws"),
    ],
)
def test_a_mistake_in_the_settings_is_told(changed, message):
    given = {"text": "novel", "draws": 8, "seeds": [1001], "scale": dict(TUNING.scale), "range": {}}
    assert read_tuning(given, [1, 2]) is not None
    assert read_tuning(None, [1, 2]) is None
    with pytest.raises(UserError, match=message):
        read_tuning({**given, **changed}, [1, 2, 3])


def planted(folder, scores: dict[str, list[tuple[float | None, ...]]]) -> tuple[Manifest, Manifest]:
    """Write draws with these scores by arm, draw and seed; return the plans of study and draws."""
    jobs, groups = [], []
    for arm, draws in scores.items():
        for i, of_seeds in enumerate(draws):
            runs = {}
            for seed, score in enumerate(of_seeds, start=1001):
                runs[str(seed)] = f"{arm}/draw-{i}/seed-{seed}"
                failed = {"status": "failed"} if score is None else {}
                write_run(folder / runs[str(seed)], score or 1.0, seed=str(seed), summary=failed)
            groups.append(Group(f"{arm}/draw-{i}", f"lr x {i}", {"lr": f"{i}"} if i else {}, runs))
            jobs += [Job(run, (), run) for run in runs.values()]
    draws_plan = Manifest("tuned tuning", "sweep", None, (), tuple(jobs), tuple(groups))
    arms = tuple(Group(arm, "", {}, {"1": f"{arm}/seed-1"}) for arm in (*scores, "copy"))
    plan = Manifest(
        "tuned",
        "study",
        "steps",
        (),
        tuple(Job(g.runs["1"], (), g.name) for g in arms),
        arms,
        (Comparison("treatment", "none", "none"),),
        (Identity(("copy/seed-1", "none/seed-1"), "copy is none"),),
    )
    return plan, draws_plan


def test_the_best_draw_has_the_best_mean_and_a_failed_one_is_never_chosen(tmp_path):
    scores = {
        "treatment": [(1.8, 1.8), (1.6, 1.9), (1.7, 1.74), (None, 1.0)],
        "none": [(1.70, 1.70), (1.8, 1.8), (1.71, 1.71), (1.9, 1.9)],
    }
    plan, draws = planted(tmp_path, scores)
    found = chosen(plan, draws, tmp_path)
    assert found.keys() == {"treatment", "none"}
    best = found["treatment"]
    assert (best.draw, best.draws, dict(best.settings)) == (2, 3, {"lr": "2"})
    assert best.says == "lr x 2"
    assert (best.score, best.as_configured) == (pytest.approx(1.72), pytest.approx(1.8))
    assert (found["none"].draw, found["none"].settings) == (0, {})
    words = words_of(plan, {**found, "none": replace(found["none"], settings={"lr": "7"})})
    assert words == {"treatment": ["lr=2"], "none": ["lr=7"], "copy": ["lr=7"]}


def test_an_arm_without_a_score_cannot_be_tuned(tmp_path):
    plan, draws = planted(tmp_path, {"treatment": [(None,), (None,)], "none": [(1.7,), (1.8,)]})
    with pytest.raises(SweepError, match="no draw of treatment has a score with every seed"):
        chosen(plan, draws, tmp_path)


@pytest.mark.parametrize(("tuned", "compiled"), [(False, True), (True, False)])
def test_the_plan_before_the_draws_decides_nothing_about_compilation(
    tmp_path, monkeypatch, tuned, compiled
):
    """It has been saved when the tuned study asks; a study that has begun without a decision stays eager."""
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)
    plan, _ = planted(tmp_path, {"treatment": [(1.8,)], "none": [(1.7,)]})
    trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 10**6, "max_time": None}
    config = {"compile": None, "trainer": trainer, "data": {"batch_tokens": 1024}}
    jobs = tuple(replace(job, config_hash=config_hash(config)) for job in plan.jobs)
    plan = replace(plan, jobs=jobs, untuned=Untuned("the best of 2 draws", {}))
    tuning = {"none": Tuned("as configured", {}, 0, 1, 1.7, 1.7)} if tuned else {}
    replace(plan, tuning=tuning).save(tmp_path)
    joining = (*plan.jobs, Job("treatment/seed-2", (), "treatment"))
    configs = {job.folder: config for job in joining}
    found, settled = compiled_alike(replace(plan, jobs=joining), configs, tmp_path)
    assert found.compiled is compiled
    assert settled["treatment/seed-2"]["compile"] is compiled
    assert settled["treatment/seed-1"]["compile"] is (None if tuned else True)


FEW = ("seed=1,2,3", "study.tuning.draws=2", "study.tuning.text=500", *WITHOUT_OTHERS)


def test_draws_are_planned_below_the_study_on_text_of_their_own(plan):
    """The planned draws are not made here, so the study does not begin."""
    done = plan("study=tuned", "objective=lse_mtp", *FEW)
    assert done.code == 5
    assert "4 of 4 draws have no score because of the machine" in done.error
    draws = manifest.load(done.folder / "tuning")
    assert {g.name for g in draws.groups} == {
        f"{arm}/draw-{i}" for arm in ("treatment", "none") for i in (0, 1)
    }
    study = manifest.load(done.folder)  # dated before any score, with the rule of the draws
    assert study.registration.content["tuning"].startswith(
        "the best of 2 draws of each arm with the seeds 1001, scored on data.tuning=500: optimizer."
    )
    assert study.registration.content["config of none"] == study.untuned.configs["none"]
    assert not study.tuning
    says = {g.name: g.says for g in draws.groups}
    assert says["none/draw-0"] == "as configured"
    assert re.sub(r"[\d.]+(?=,|$)", "N", says["none/draw-1"]) == (
        "optimizer.groups.*.lr x N, optimizer.groups.*.weight_decay=N, model.dropout=N"
    )
    words = {job.folder: set(job.overrides) for job in draws.jobs}
    for given in words.values():
        assert {"data.tuning=500", "data.validate_on=tuning", "seed=1001"} <= given
    ours, theirs = (
        {w for w in words[f"{arm}/draw-1/seed-1001"] if w.startswith(("optimizer", "model.drop"))}
        for arm in ("treatment", "none")
    )
    assert len(ours) > 5
    assert ours == theirs
    assert any(w.startswith("jepa.weight=") for w in words["treatment/draw-1/seed-1001"])
    assert not any(w.startswith("jepa.weight=") for w in words["none/draw-1/seed-1001"])
    folders = {w for job in done.launched for w in job if w.startswith("hydra.sweep.subdir=")}
    assert "hydra.sweep.subdir=tuning/none/draw-0/seed-1001" in folders


def test_data_without_the_text_are_told_before_anything_is_planned(plan):
    done = plan("study=tuned", "objective=lse_mtp", "seed=1,2,3", *WITHOUT_OTHERS)
    assert done.code == 2
    assert "data.tuning=novel: only the embedded corpus has novels" in done.error
    assert not done.launched


def test_a_setting_that_no_arm_has_is_told(plan):
    done = plan(
        "study=tuned",
        "objective=lse_mtp",
        *FEW,
        "~study.tuning.scale",
        "+study.tuning.scale={nothing: [1, 2]}",
    )
    assert done.code == 2
    assert "study.tuning.scale.nothing: no arm has a number there to draw" in done.error
