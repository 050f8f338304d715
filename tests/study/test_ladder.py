"""The plan of a study at several sizes: rungs, arms, compute, refusals; nothing is trained."""

from __future__ import annotations

import json
import os

import pytest

from jepa_lm.study import manifest
from jepa_lm.study.dry_run import dry_run
from jepa_lm.study.duration import Launching
from jepa_lm.study.ladder import climbed, climbs, costs, on_ladder
from jepa_lm.study.request import Request
from jepa_lm.study.results import collect
from jepa_lm.utils.errors import UserError
from tests.study.conftest import WITHOUT_OTHERS
from tests.study.sweeps import climbing
from tests.study.test_plan import settings

FEW = ("study.ladder.small=null", "study.arms.weight_0=null")
SCALING = ("study=scaling", "experiment=laptop", "objective=lse_mtp", *FEW, *WITHOUT_OTHERS)
RUNGS = ("tiny", "medium", "large")


def test_every_rung_is_a_study_of_its_own(plan):
    done = plan(*SCALING, "jepa.weight=0.1,0.3", "seed=1,2", small=False)
    assert done.code == 0, done.error
    found = done.plan
    assert [rung.name for rung in found.ladder] == list(RUNGS)
    # Treatments are compared within their rung, and share its control.
    assert {(c.of, c.against) for c in found.comparisons} == {
        (f"rung-{rung}_jepa.weight-{weight}/treatment", f"rung-{rung}/none")
        for rung in RUNGS
        for weight in ("0.1", "0.3")
    }
    assert climbs(found) == [
        {rung: f"rung-{rung}_jepa.weight-{weight}/treatment" for rung in RUNGS}
        for weight in ("0.1", "0.3")
    ]
    assert len({job.config_hash for job in found.jobs}) == len(found.jobs) == 3 * 3 * 2
    assert not any("model.dim" in comparison.differences for comparison in found.comparisons)
    for folder in ("rung-large/none/seed-2", "rung-large_jepa.weight-0.3/treatment/seed-2"):
        given = settings(done, folder)
        assert [given[f"model.{key}"] for key in ("dim", "backbone.layers")] == ["96", "6"]
        assert given.get("jepa.weight") == (None if "none" in folder else "0.3")
    first, *_, last = (rung.log_flops[f"rung-{rung.name}/none"] for rung in found.ladder)
    assert last - first > 1  # more than a factor of ten
    content = found.registration.content
    assert content["trend"].endswith("by Student's t, two-sided at 0.05, Holm over 2 trends")
    assert content["ladder"].startswith("tiny: model.dim=32, model.backbone.layers=2")


GOOD = {name: [f"model.dim={dim}"] for name, dim in (("a", 32), ("b", 48), ("c", 64))}


@pytest.mark.parametrize(
    ("ladder", "study", "says"),
    [
        ({"c": None}, {}, "study.ladder: has 2 rungs (a, b); a trend needs 3 or more"),
        ({"c": []}, {}, "study.ladder.c=[]: needs overrides"),
        ({"c": 3}, {}, "study.ladder.c=3: "),
        ({"c": [64]}, {}, "study.ladder.c=[64]: "),
        ({"c/d": ["a=1"]}, {}, "study.ladder.c/d: a rung has a name"),
        ({"c": ["model.dim"]}, {}, "study.ladder.c: 'model.dim' is no override"),
        ({"c": ["model.dim=1,2"]}, {}, "study.ladder.c: model.dim=1,2: it has several values"),
        ({"c": ["seed=3"]}, {}, "study.ladder.c: seed=3: seed is not of a rung"),
        ({"c": ["study.match=time"]}, {}, "study.match is not of a rung"),
        ({"c": ["+data.n=9"]}, {}, "data.n=6: study.ladder.c sets data.n as well (+data.n=9)"),
        ({"c": ["jepa.weight=9"]}, {}, "jepa.weight=1,2: study.ladder.c sets jepa.weight as well"),
        ({}, {"seeds": "open"}, "study.seeds=open: a study with a ladder needs study.seeds=fixed"),
        ({}, {"seeds": "sequential"}, "needs study.seeds=fixed"),
        ({}, {"match": "time"}, "study.match=time: a study with a ladder needs study.match=steps"),
    ],
)
def test_a_mistake_in_a_ladder_is_one_line(ladder, study, says):
    request = Request(("data.n=6",), {"jepa.weight": ("1", "2"), "seed": ("1", "2")})
    assert len(on_ladder(request, {"ladder": GOOD}).cells()) == 6
    with pytest.raises(UserError) as error:
        on_ladder(request, {"ladder": GOOD | ladder, **study})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("metric=val/solved",), "error: metric=val/solved: counts seeds, which have no trend"),
        (("model.dim=64",), "error: model.dim=64: study.ladder.tiny sets model.dim as well"),
    ],
)
def test_the_command_refuses_a_ladder_that_cannot_be_climbed(plan, words, says):
    done = plan(*SCALING, "seed=1", *words, small=False)
    assert done.code == 2
    assert done.error.startswith(says)
    assert not done.folder.exists()


@pytest.mark.parametrize("flops", [{10: 6e3, 20: 9e3, 30: 6e3}, {10: 6e3, 20: 9e3, 30: 5e3}])
def test_the_compute_has_to_rise_from_rung_to_rung(tmp_path, flops):
    climbing(tmp_path, {"lewm": (0.0, 0.0, 0.0)}, log_flops=(11.0, 12.0, 13.0), seeds=1)
    found = manifest.load(tmp_path)
    request = Request((), {}, ladder={rung.name: rung.overrides for rung in found.ladder})
    configs = {
        job.folder: {
            "metric": None,
            "trainer": {"max_steps": 10 * n},
            "data": {"batch_tokens": 100},
        }
        for n, jobs in zip(
            (1, 2, 3), (found.jobs[:2], found.jobs[2:4], found.jobs[4:]), strict=True
        )
        for job in jobs
    }
    risen = climbed(found, request, configs, lambda config: 6e3)
    assert [10 ** rung.log_flops[f"rung-{rung.name}/control"] for rung in risen.ladder] == (
        pytest.approx([6e6, 12e6, 18e6])
    )
    with pytest.raises(UserError, match=r"a run of r2 takes .* and one of r1, before it, "):
        climbed(found, request, configs, lambda config: flops[config["trainer"]["max_steps"]])


def test_a_plan_without_a_ladder_is_read_and_a_broken_one_refused(tmp_path):
    climbing(tmp_path, {"lewm": (0.0, 0.0, 0.0)}, log_flops=(11.0, 12.0, 13.0), seeds=1)
    path = tmp_path / "study.json"
    raw = json.loads(path.read_text())
    assert manifest.load(tmp_path).log_flops("rung-r1_objective-lewm/treatment") == 12.0
    path.write_text(json.dumps({k: v for k, v in raw.items() if k != "ladder"}))
    assert manifest.load(tmp_path).ladder == ()
    assert collect(tmp_path).trends == ()
    rung = raw["ladder"][1]
    for wrong in (
        {"log_flops": {}},
        {"log_flops": {"rung-r1/control": 1e9}},
        {"log_flops": {"rung-r1/control": -1.0}},
        {"log_flops": {"rung-r1/control": "12"}},
        {"log_flops": {"rung-r1/control": True}},
        {"name": "r0"},
        {"overrides": 3},
    ):
        ladder = [raw["ladder"][0], rung | wrong, raw["ladder"][2]]
        path.write_text(json.dumps(raw | {"ladder": ladder}))
        with pytest.raises(UserError, match="is not a valid plan"):
            manifest.load(tmp_path)


def test_runs_cost_the_flops_of_their_rung(tmp_path):
    """A dry run goes by the finished ones, a minute each at the first rung."""
    climbing(tmp_path, {"lewm": (0.0, 0.0, 0.0)}, log_flops=(11.0, 12.0, 13.0), seeds=2)
    planned = manifest.load(tmp_path)
    found = costs(planned)
    assert len(found) == 12
    assert sorted(found.values()) == pytest.approx([1e11] * 4 + [1e12] * 4 + [1e13] * 4)
    for i, job in enumerate(planned.jobs):
        record = tmp_path / job.folder / "summary.json"
        if i < 4:
            began = (tmp_path / job.folder / "config.json").stat().st_mtime
            record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 50.0}))
            os.utime(record, (began, began + 60))
        else:
            record.unlink()
    config = {
        "trainer": {"max_steps": 10, "max_time": None},
        "checkpoint": {"every_n_steps": None, "keep": 1},
    }
    configs = {job.folder: config for job in planned.jobs}
    size = lambda config: 10**6  # noqa: E731
    lines = dry_run(planned, configs, tmp_path, Launching(2, 12, found), size, size)
    assert (
        "time: about 3.7 hours: 8 runs, by their FLOPs and the time of the 4 finished, 2 at a time"
        in lines
    )
