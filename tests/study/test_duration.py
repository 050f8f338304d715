"""What a sweep says of its time when a job begins."""

from __future__ import annotations

import json
import os

import pytest

from jepa_lm.study import duration
from jepa_lm.study.duration import JobLines, Launching, workers
from jepa_lm.study.manifest import Job
from tests.study.sweeps import SUMMARY, write_run


class Sweep:
    """The folders of a sweep's jobs, as they are while it runs, and the clock."""

    def __init__(self, folder, jobs: int) -> None:
        self.folder, self.now = folder, 0.0
        self.jobs = [Job(f"seed-{i}", (), "x") for i in range(jobs)]

    def begin(self, *places: int) -> None:
        for place in places:
            write_run(self.folder / f"seed-{place}", None)

    def end(self, place: int, seconds: float, status: str = "finished") -> None:
        run = self.folder / f"seed-{place}"
        summary = {**SUMMARY, "seconds": 0.5 * seconds, "status": status}
        (run / "summary.json").write_text(json.dumps(summary))
        began = (run / "config.json").stat().st_mtime
        os.utime(run / "summary.json", (began, began + seconds))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    found = Sweep(tmp_path, 9)
    monkeypatch.setattr(duration.time, "monotonic", lambda: found.now)
    return found


def test_a_run_took_the_time_between_its_records_and_no_less_than_its_training(sweep):
    sweep.begin(0, 1)
    sweep.end(0, 600)
    assert duration.duration(sweep.folder / "seed-0") == pytest.approx(600)
    written = (sweep.folder / "seed-0" / "config.json").stat().st_mtime
    os.utime(sweep.folder / "seed-0" / "summary.json", (written, written + 200))  # resumed
    assert duration.duration(sweep.folder / "seed-0") == 300
    assert duration.duration(sweep.folder / "seed-1") is None


def test_a_job_that_begins_is_told_with_the_time_that_is_left(sweep, capsys):
    lines = JobLines(sweep.jobs, sweep.jobs, sweep.folder, Launching(1, 9))
    told = []
    for place, took in enumerate((600, 840, 600)):
        lines.look()
        sweep.begin(place)
        lines.look()
        lines.look()
        sweep.now += took
        sweep.end(place, took)
        told += capsys.readouterr().err.splitlines()
    sweep.begin(3)
    lines.look()
    told += capsys.readouterr().err.splitlines()
    assert told == [
        "job 1 of 9: seed-0",
        "job 2 of 9: seed-1, about 80 minutes left",  # 8 of 600 s
        "job 3 of 9: seed-2, about 84 minutes left",  # 7 of 720 s
        "job 4 of 9: seed-3, about 60 minutes left",  # 6 of 600 s
    ]


def test_workers_share_the_time_and_failed_jobs_say_nothing_of_it(sweep, capsys):
    lines = JobLines(sweep.jobs, sweep.jobs, sweep.folder, Launching(2, 9))
    sweep.begin(0, 1)
    lines.look()
    sweep.now = 240.0
    sweep.end(0, 10, "failed")
    sweep.begin(2)
    lines.look()
    sweep.now = 600.0
    sweep.end(1, 600)
    sweep.begin(3)
    lines.look()
    assert capsys.readouterr().err.splitlines() == [
        "job 2 of 9: seed-1",
        "job 3 of 9: seed-2",
        "job 4 of 9: seed-3, about 32 minutes left",  # (5 x 600 s + 240 s + 600 s) / 2
    ]


def test_a_sweep_that_goes_on_counts_what_is_finished(sweep, capsys):
    """An interrupted job has records of its first attempt, which do not mean that it runs."""
    for place, took in ((0, 60), (1, 120)):
        sweep.begin(place)
        sweep.end(place, took)
    sweep.begin(2)
    sweep.end(2, 30, "interrupted")
    lines = JobLines(sweep.jobs, sweep.jobs[2:], sweep.folder, Launching(1, 12))
    lines.look()
    assert not capsys.readouterr().err
    sweep.begin(2)
    lines.look()
    assert capsys.readouterr().err == "job 3 of 12: seed-2, about 15 minutes left\n"


def test_jobs_of_a_ladder_take_the_time_of_their_flops(sweep, capsys):
    """A job of the first rung took a minute; the second costs ten times as much, the others a hundred."""
    costs = {job.folder: 1e12 * 10 ** min(i, 2) for i, job in enumerate(sweep.jobs)}
    lines = JobLines(sweep.jobs, sweep.jobs, sweep.folder, Launching(1, 9, costs))
    sweep.begin(0)
    lines.look()
    sweep.now = 60.0
    sweep.end(0, 60)
    sweep.begin(1)
    lines.look()
    assert capsys.readouterr().err.splitlines()[-1] == "job 2 of 9: seed-1, about 11.8 hours left"


@pytest.mark.parametrize(
    ("launcher", "at_once"),
    [
        ({}, 1),
        ({"n_jobs": 4}, 4),
        ({"n_jobs": -1}, os.cpu_count()),
        ({"array_parallelism": 16}, 16),
    ],
)
def test_workers_are_those_of_the_launcher(launcher, at_once):
    assert workers(launcher) == at_once
