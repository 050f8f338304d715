"""Weights & Biases in separate processes: ranks, a sweep's agent, no login."""

from __future__ import annotations

import pytest

from tests import processes, wandb_file
from tests.conftest import SMALL

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow


@pytest.fixture
def start(small_text, tmp_path):
    """start(overrides..., VARIABLE=...) runs train.py; returns exit code and stderr."""

    def run(*overrides: str, **variables: str) -> tuple[int, str]:
        words = (*SMALL, f"data.path={small_text}", *overrides)
        process = processes.start("train.py", *words, **variables)
        _, err = process.communicate()
        return process.returncode, err

    return run


def test_two_ranks_are_one_run(start, tmp_path):
    folder = tmp_path / "run"
    code, err = start("trainer=ddp_sim", "logger=wandb", f"hydra.run.dir={folder}")
    assert code == 0, err
    (run,) = wandb_file.runs_in(folder)
    assert run.exit_code == 0
    assert len(run.series("train/ce")) == 3
    assert run.config["trainer"]["devices"] == 2


def test_a_run_of_a_sweep_has_the_id_that_the_agent_gave_it(start, tmp_path):
    agent = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "given", "WANDB_PROJECT": "of_the_sweep"}
    words = ("logger=wandb", "logger.wandb.project=mine", "ckpt_path=auto")
    where = f"hydra.run.dir={tmp_path}/${{oc.env:WANDB_RUN_ID}}"
    for _ in range(2):  # the second time it resumes and has nothing left to do
        code, err = start(*words, where, **agent)
        assert code == 0, err
        assert "Ignoring" not in err
    first, second = wandb_file.runs_in(tmp_path / "given")
    assert (first.id, first.project) == ("given", "of_the_sweep")
    assert (second.id, second.exit_code) == ("given", 0)


def test_nobody_is_logged_in(start, tmp_path):
    where = f"hydra.run.dir={tmp_path}/run"
    nobody = {"WANDB_MODE": "online", "WANDB_API_KEY": "", "HOME": str(tmp_path)}
    code, err = start("logger=wandb", where, **nobody)
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: logger=wandb: ")
    assert "`wandb login` or WANDB_API_KEY, or set logger.wandb.offline=true" in last
    assert "Traceback" not in err
