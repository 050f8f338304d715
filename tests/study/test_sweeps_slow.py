"""Sweeps and studies by the real command: kills, failures, interrupts, GPUs, a search."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from jepa_lm.study import manifest
from jepa_lm.study.runs import Run, find_runs
from jepa_lm.utils.locks import only_writer
from tests.conftest import SMALL
from tests.processes import Program, run, start

pytestmark = pytest.mark.slow
WEIGHTS = ("sweep=jepa_weight", "objective=patch", "seed=1,2")


def sweep(folder: Path, text: Path, *words: str) -> Program:
    common = (*SMALL, f"data.path={text}", f"hydra.sweep.dir={folder}")
    flags = [word for word in words if word == "-m"]
    return start("train.py", *flags, *common, *(word for word in words if word != "-m"))


def finish(process: Program) -> tuple[int, str]:
    """Wait for a process; return exit code and stderr."""
    _, err = process.communicate(timeout=500)
    return process.returncode, err


def finished(folder: Path) -> dict[str, float]:
    """Return when each finished run of a sweep was written."""
    runs = [run for run in find_runs(folder) if run.finished]
    return {
        str(r.folder.relative_to(folder)): (r.folder / "summary.json").stat().st_mtime_ns
        for r in runs
    }


def without_date(html: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "", html)


def test_a_sweep_killed_in_the_middle_goes_on_to_its_report(tmp_path, small_text):
    """8 jobs: finished ones stay untouched, the rest equal those of an undisturbed sweep."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(sweep(whole, small_text, *WEIGHTS))[0] == 0
    process = sweep(broken, small_text, *WEIGHTS)
    while len(finished(broken)) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(broken)
    assert 3 <= len(before) < 8
    code, err = finish(sweep(broken, small_text, *WEIGHTS))
    assert code == 0, err
    after = finished(broken)
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    for job in manifest.load(whole).jobs:
        assert Run(broken / job.folder).bpb == Run(whole / job.folder).bpb
    html = (broken / "report.html").read_text()
    assert all(f"{Run(broken / job.folder).bpb:.4f}" in html for job in manifest.load(broken).jobs)


def test_a_failed_job_does_not_lose_the_others_and_is_tried_again(tmp_path, small_text):
    folder = tmp_path / "sweep"
    words = ("-m", "seed=1,2", "data.batch_tokens=256,250")
    code, err = finish(sweep(folder, small_text, *words))
    assert code == 5
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: 2 of 4 jobs failed; ")
    assert "data.batch_tokens=250: must be a multiple" in last
    assert f"hydra.sweep.dir={folder}" in last
    assert len(finished(folder)) == 2
    assert "must be a multiple" in (folder / "report.md").read_text()
    _, again = finish(sweep(folder, small_text, *words))
    assert "4 jobs in" in again
    assert "2 of them already finished" in again


def test_ctrl_c_stops_the_sweep_and_not_only_its_job(tmp_path, small_text):
    folder = tmp_path / "sweep"
    process = sweep(
        folder, small_text, "-m", "seed=1,2,3", "trainer.max_steps=100000", "compile=false"
    )
    while not (folder / "all/seed-1/checkpoints/last.ckpt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, err = finish(process)
    assert code == 130, err
    assert [run.status for run in find_runs(folder)] == ["interrupted"]


def test_two_sweeps_in_one_folder_are_one_and_a_refusal(tmp_path, small_text):
    """The second sweep is refused in one line; a killed sweep leaves its folder free."""
    folder = tmp_path / "sweep"
    first = sweep(folder, small_text, "-m", "seed=1,2", "trainer.max_steps=100000", "compile=false")
    while not (folder / "all/seed-1/metrics.csv").exists() and first.poll() is None:
        time.sleep(0.05)
    code, err = finish(
        sweep(folder, small_text, "-m", "seed=1,2", "trainer.max_steps=100000", "compile=false")
    )
    assert code == 2
    assert err.splitlines() == [
        f"error: hydra.sweep.dir={folder}: another process is writing there; wait until it has finished, or "
        "name another folder"
    ]
    assert first.poll() is None
    first.kill()
    first.wait()
    with only_writer(folder, "hydra.sweep.dir"):
        pass


def test_each_worker_has_a_gpu_of_its_own(tmp_path, small_text, monkeypatch):
    """As each job sees it; the numbers come from the user's own list."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    folder = tmp_path / "sweep"
    words = ("-m", "hydra/launcher=gpus", "seed=1,2,3,4")
    code, err = finish(sweep(folder, small_text, *words))
    assert code == 0, err
    seen = [run.summary["visible_gpus"] for run in find_runs(folder)]
    assert len(seen) == 4
    assert set(seen) == {"3", "5"}


def test_a_search_draws_the_same_again(tmp_path, small_text):
    folder = tmp_path / "sweep"
    words = ("-m", "objective=patch", "jepa.weight=interval(0,1)", "hydra.sweeper.trials=3")
    assert finish(sweep(folder, small_text, *words))[0] == 0
    drawn = [g.settings["jepa.weight"] for g in manifest.load(folder).groups]
    assert len(set(drawn)) == 3
    assert all(0 < float(w) < 1 for w in drawn)
    code, err = finish(sweep(folder, small_text, *words))
    assert code == 0
    assert "3 jobs in" in err
    assert "3 of them already finished" in err


def test_a_study_proves_weight_0_and_rebuilds_its_report(tmp_path, small_text):
    folder = tmp_path / "study"
    words = ("study=ablation", "objective=lewm", "seed=1,2", "jepa.weight=0.3")
    code, err = finish(sweep(folder, small_text, *words))
    assert code == 0, err
    one, other = manifest.load(folder).identities[0].runs
    assert Run(folder / one).nll == Run(folder / other).nll
    assert Run(folder / one).series("train/ce") == Run(folder / other).series("train/ce")
    rebuilt = folder / "report.html"
    first = rebuilt.read_text()
    rebuilt.unlink()
    run("jepa_lm.study", str(folder))
    assert without_date(rebuilt.read_text()) == without_date(first)
    kept = json.loads((folder / "treatment/seed-1/config.json").read_text())
    assert (kept["jepa"]["weight"], kept["study"]) == (0.3, None)
