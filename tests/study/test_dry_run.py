"""What a dry run says, and that it writes nothing."""

from __future__ import annotations

import json
import os

import pytest

from jepa_lm.artifact.teacher import opener
from jepa_lm.training.flops import flops_of
from jepa_lm.utils.trusted import Trust
from jepa_lm.utils.waiting import about
from tests.study.test_execution import finish, keep_configs  # noqa: F401 (a fixture)

STUDY = ("study=same", "seed=1,2,3")


def kept(folder) -> dict[str, int]:
    found = [folder, *folder.rglob("*")]
    return {str(p): p.stat().st_mtime_ns for p in found if p.name != "configs.json"}


@pytest.mark.usefixtures("keep_configs")
def test_a_dry_run_says_what_a_study_would_take_and_writes_nothing(plan, trained):
    found = plan(*STUDY)
    finish(found, "again/seed-1001")
    finish(found, "treatment/seed-1")
    for folder, seconds in (("again/seed-1001", 60), ("treatment/seed-1", 180)):
        began = (found.folder / folder / "config.json").stat().st_mtime
        os.utime(found.folder / folder / "summary.json", (began, began + seconds))
    before = kept(found.folder)
    again = plan(*STUDY, "study.dry_run=true")
    assert (again.code, again.launched, kept(found.folder)) == (0, [], before), again.error
    assert again.printed[1:6] == [
        "  arm        runs  finished",
        "  treatment     3         1  as configured",
        "  again         3         1  the same once more, with other seeds",
        "6 runs, 2 of them already finished",
        "time: about 8 minutes: 4 runs of about 2 minutes each (the median of the 2 finished)",
    ]
    what, _, size = again.printed[6].partition(" checkpoints of about ")
    assert what.startswith("disk: about ")
    assert what.endswith(": 4 runs, up to 2")
    assert float(size.split()[0]) == pytest.approx(trained.checkpoint.stat().st_size / 1e6, rel=0.1)


@pytest.mark.parametrize(
    ("words", "runs", "time"),
    [
        (
            ("seed=1,2,3", "trainer.max_time=600", "trainer.max_steps=null"),
            "3 runs, 0 of them already finished",
            "time: about 30 minutes of training: 3 runs of trainer.max_time=600 s",
        ),
        (
            ("objective=vicreg", "jepa.weight=interval(0,1)", "seed=1,2", "hydra.sweeper.trials=5"),
            "10 runs, 0 of them already finished",
            "time: unknown, no run here or below logs has finished that could tell and trainer.max_time",
        ),
    ],
    ids=["time", "search"],
)
def test_a_dry_run_of_a_sweep_or_a_search_makes_no_folder(
    plan, words, runs, time, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = plan("-m", *words, "hydra.sweeper.dry_run=true")
    assert (found.code, found.launched) == (0, []), found.error
    assert not found.folder.exists()
    assert runs in found.printed
    assert found.printed[-2].startswith(time)
    assert found.printed[-1].startswith("disk: about ")


def test_without_a_finished_run_the_time_is_estimated_from_one_below_the_folder_of_logs(
    plan, trained, tmp_path, monkeypatch
):
    """The finished run trained 6 steps in 30 s, after which it took 12 s; a run of 60 steps takes 312 s."""
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "logs" / "train" / "runs" / "2026-01-02_03-04-05-000001"
    earlier.mkdir(parents=True)
    config = json.loads((trained.folder / "config.json").read_text())
    record = json.loads((trained.folder / "summary.json").read_text())
    record |= {"seconds": 30.0, "flops_per_token": {"model": flops_of(config, opener(Trust(())))}}
    (earlier / "config.json").write_text(json.dumps(config))
    (earlier / "summary.json").write_text(json.dumps(record))
    began = (earlier / "config.json").stat().st_mtime
    os.utime(earlier / "summary.json", (began, began + 42))
    steps = 10 * record["steps"]
    for words in (
        ("study=same", "study.dry_run=true"),
        ("-m", "hydra.sweeper.dry_run=true"),
    ):
        found = plan(*words, "seed=1,2,3", f"trainer.max_steps={steps}")
        assert (found.code, found.launched) == (0, []), found.error
        many = 6 if "study=same" in words else 3
        place = earlier.relative_to(tmp_path)
        assert found.printed[-2] == (
            f"time: {about(many * 312)}: {many} runs of about 5 minutes each, estimated by FLOPs from {place}"
        )


def test_a_dry_run_is_yes_or_no(plan):
    found = plan(*STUDY, "study.dry_run=maybe")
    assert found.code == 2
    assert "study.dry_run=maybe" in found.error
