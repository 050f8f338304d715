"""Clusters: a pre-empted job of a sweep resumes by itself; the example scripts match their descriptions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest

from tests.conftest import REPO, SMALL
from tests.processes import run, start, wait_until
from tests.runs import losses

pytestmark = pytest.mark.slow


def processes(words: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def test_a_preempted_job_is_requeued_and_goes_on_bit_for_bit(tmp_path, small_text):
    """With submitit's local executor, which sends and handles the same signals as its SLURM executor."""
    common = [*SMALL, f"data.path={small_text}", "trainer.max_steps=130"]
    logged = "trainer.log_every_n_steps=1"
    run("train.py", *common, logged, f"hydra.run.dir={tmp_path}/whole")
    sweep = tmp_path / "sweep"
    job_folder = sweep / "all" / "seed-1337"
    launcher = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=600")
    process = start(
        "train.py", "-m", *launcher, *common, logged, "ckpt_path=auto", f"hydra.sweep.dir={sweep}"
    )
    wait_until((job_folder / "checkpoints" / "last.ckpt").is_file, process)
    (job,) = processes(f"submitit.core._submit {sweep}")
    os.kill(job, signal.SIGUSR2)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    told = "".join(p.read_text() for p in (sweep / ".submitit").rglob("*.err"))
    assert "SIGUSR2: stopping after this step" in told
    assert "Requeued job" in told
    assert "continues " in told
    assert losses(job_folder) == losses(tmp_path / "whole")
    assert json.loads((job_folder / "summary.json").read_text())["steps"] == 130


def test_the_launcher_config_is_one_of_submitits(tmp_path):
    printed = run("train.py", "hydra/launcher=slurm", "--cfg", "hydra")
    assert "submitit_launcher.SlurmLauncher" in printed
    assert "max_num_timeout: 20" in printed


def test_the_sbatch_example_is_sound(tmp_path):
    path = REPO / "docs" / "train.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    script = path.read_text().replace("\\\n", " ")
    overrides = re.search(r"python train\.py (.*)", script).group(1)
    shell = f"SLURM_JOB_ID=1 SLURM_NNODES=1; echo {overrides}"
    words = subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout.split()
    printed = run("train.py", *words, "--cfg", "job")
    assert "ckpt_path: auto" in printed
