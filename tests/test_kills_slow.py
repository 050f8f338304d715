"""SIGKILL at twenty moments, writes of checkpoints included: nothing is lost, everything bit-identical."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from jepa_lm.checkpoint import read_checkpoint
from tests.conftest import REPO
from tests.test_end_to_end_slow import losses

pytestmark = pytest.mark.slow
KILLS = 20


def test_a_run_killed_twenty_times_is_the_run_that_was_not(small, tmp_path):
    common = (
        "objective=vicreg",
        "average.decay=0.9",
        "trainer.max_steps=160",
        "trainer.log_every_n_steps=1",
        "trainer.limit_val_batches=1",
        "checkpoint.every_n_steps=4",
        "ckpt_path=auto",
    )
    history = {}
    for name, kills in (("whole", 0), ("killed", KILLS)):
        config = tmp_path / f"{name}.yaml"
        OmegaConf.save(small(*common, run_dir=tmp_path / name), config)
        arguments = [str(config), str(kills), "7", str(tmp_path / f"{name}.json")]
        subprocess.run(
            [sys.executable, "-m", "tests.kill_worker", *arguments],
            cwd=REPO,
            check=True,
            timeout=500,
        )
        history[name] = json.loads((tmp_path / f"{name}.json").read_text())
    killed = [entry for entry in history["killed"] if entry["status"] == -signal.SIGKILL]
    assert len(history["killed"]) == KILLS + 1
    assert len(killed) >= KILLS - 4  # a plan may come after the run was done
    assert (
        len({entry["plan"][0] for entry in killed}) == 6
    )  # by time, and in each moment of a write
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    a, b = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("whole", "killed")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed")
    ]
    assert summaries[0]["val"] == summaries[1]["val"]
