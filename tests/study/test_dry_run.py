"""What a dry run says, and that it writes nothing."""

from __future__ import annotations

import os

import pytest

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
            "time: unknown, no run here",
        ),
    ],
    ids=["time", "search"],
)
def test_a_dry_run_of_a_sweep_or_a_search_makes_no_folder(plan, words, runs, time):
    found = plan("-m", *words, "hydra.sweeper.dry_run=true")
    assert (found.code, found.launched) == (0, []), found.error
    assert not found.folder.exists()
    assert runs in found.printed
    assert found.printed[-2].startswith(time)
    assert found.printed[-1].startswith("disk: about ")


def test_a_dry_run_is_yes_or_no(plan):
    found = plan(*STUDY, "study.dry_run=maybe")
    assert found.code == 2
    assert "study.dry_run=maybe" in found.error
