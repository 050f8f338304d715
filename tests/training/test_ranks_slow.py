"""Runs over several processes by the real command: signals, lost ranks, sweeps, exchanges between logs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest
import torch

from jepa_lm.model.checkpoint import damage, read_checkpoint
from tests.conftest import SMALL
from tests.processes import Program, run, start, wait_until
from tests.runs import losses

pytestmark = pytest.mark.slow
LONG = (
    "trainer.max_steps=100000",
    "checkpoint.every_n_steps=2",
    "trainer.log_every_n_steps=1",
    "compile=false",
)


def begin(folder, text, *overrides: str) -> Program:
    """Start two ranks in the background and wait until they save a checkpoint."""
    last = folder / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    common = (*SMALL, f"data.path={text}", "trainer=ddp_sim", f"hydra.run.dir={folder}")
    process = start("train.py", *common, *overrides)
    wait_until(lambda: last.exists() and last.stat().st_mtime_ns != before, process)
    return process


def child_of(process: Program) -> int:
    """Return the process id of the rank that a run has started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    (child,) = found.stdout.split()
    return int(child)


def gone(pid: int) -> bool:
    """Return whether a process ends within a minute."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def as_torchrun(*commands: tuple[str, ...], **variables: str) -> list[Program]:
    """Start one rank for each command as torchrun does: each composes its own config."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(len(commands)), "LOCAL_WORLD_SIZE": str(len(commands))}
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
    shared = {**world, **names, "TORCHELASTIC_RUN_ID": "1", **variables}
    return [
        start(*command, "trainer=ddp_sim", RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank, command in enumerate(commands)
    ]


def whole(folder) -> bool:
    return damage(folder / "checkpoints" / "last.ckpt") is None


def test_a_lost_rank_ends_the_run_within_a_minute(tmp_path, small_text):
    process = begin(tmp_path / "run", small_text, *LONG)
    os.kill(child_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: rank 1 was killed by signal 9, so training stopped; resume")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert whole(tmp_path / "run")


def test_ranks_stop_when_the_first_is_lost(tmp_path, small_text):
    process = begin(tmp_path / "run", small_text, *LONG)
    child = child_of(process)
    process.kill()
    process.wait()
    assert gone(child)
    assert whole(tmp_path / "run")


def test_sigterm_to_one_rank_stops_both_after_the_same_step(tmp_path, small_text):
    process = begin(tmp_path / "run", small_text, *LONG)
    child = child_of(process)
    os.kill(child, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert gone(child)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["ranks"]) == ("interrupted", 2)
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == summary["steps"]


def test_two_ranks_killed_twice_go_on_bit_for_bit(tmp_path, small_text):
    common = ("trainer.max_steps=90", "checkpoint.every_n_steps=2", "trainer.log_every_n_steps=1")
    args = (*SMALL, f"data.path={small_text}", "trainer=ddp_sim", *common, "ckpt_path=auto")
    equal = "+callbacks.equal._target_=tests.ranks.EqualRanks"
    run("train.py", *args, f"hydra.run.dir={tmp_path}/whole")
    for pause in (0.1, 0.3):
        process = begin(tmp_path / "killed", small_text, *common, "ckpt_path=auto")
        time.sleep(pause)
        child = child_of(process)
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()
    run("train.py", *args, equal, f"hydra.run.dir={tmp_path}/killed")
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    a, b = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("whole", "killed")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_no_number_names_its_rank_once(tmp_path, small_text):
    poison = (
        "+callbacks.poison._target_=tests.ranks.PoisonRank",
        "+callbacks.poison.step=4",
        "+callbacks.poison.rank=1",
    )
    process = start(
        "train.py",
        *SMALL,
        f"data.path={small_text}",
        "trainer=ddp_sim",
        "trainer.max_steps=20",
        "trainer.log_every_n_steps=5",
        *poison,
        f"hydra.run.dir={tmp_path}/run",
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    told = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert told[0].startswith("error: train/ce is nan at step 4 on rank 1: training stopped")


def test_what_all_ranks_of_a_machine_find_is_told_once(tmp_path, small_text):
    words = (*SMALL, f"data.path={small_text}", "trainer.max_steps=1", f"hydra.run.dir={tmp_path}")
    command = ("train.py", *words, "compile=true")
    told = []
    for rank in as_torchrun(command, command, CXX="no-such-compiler"):
        _, err = rank.communicate()
        assert rank.returncode == 0, err
        told.append(err.count("needs a C++ compiler"))
    assert told == [1, 0]


def test_nothing_is_exchanged_between_log_points_but_gradients_and_muon(tmp_path, small_text):
    """One gather of Muon's per step; one more at log points and checkpoints."""
    counts = tmp_path / "counts.json"
    run(
        "train.py",
        *SMALL,
        f"data.path={small_text}",
        "trainer=ddp_sim",
        "trainer.max_steps=12",
        "trainer.log_every_n_steps=4",
        "trainer.limit_val_batches=0",
        "checkpoint.every_n_steps=null",
        "+callbacks.count._target_=benchmarks.host_reads.CountCollectives",
        f"+callbacks.count.path={counts}",
        f"hydra.run.dir={tmp_path}/run",
    )
    found = json.loads(counts.read_text())
    assert len(found) == 12
    quiet = [count for step, count in enumerate(found, 1) if step % 4 and step > 4]
    assert set(quiet) == {1}
    assert {found[3], found[7]} == {2}


def test_a_sweep_of_two_ranks_each_gives_two_runs(tmp_path, small_text):
    """Ranks that repeat the command line would start the sweep again."""
    common = [*SMALL, f"data.path={small_text}", f"hydra.sweep.dir={tmp_path}/sweep"]
    process = start("train.py", "-m", *common, "seed=1,2", "trainer=ddp_sim", "trainer.max_steps=4")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.count(" jobs in ") == 1, err  # a rank that plans the sweep again would print it too
    folders = sorted(p.name for p in (tmp_path / "sweep/all").iterdir() if p.is_dir())
    assert folders == ["seed-1", "seed-2"]
    scores = set()
    for name, seed in (("all/seed-1", 1), ("all/seed-2", 2)):
        summary = json.loads((tmp_path / "sweep" / name / "summary.json").read_text())
        assert (summary["seed"], summary["ranks"], summary["steps"]) == (seed, 2, 4)
        of_the_ranks = json.loads((tmp_path / "sweep" / name / "ranks.json").read_text())
        assert (of_the_ranks["seed"], of_the_ranks["data"]["seed"]) == (seed, seed)
        scores.add(summary["val"]["nll"])
    assert len(scores) == 2
    assert not [
        p for p in (tmp_path / "sweep").rglob("*") if re.search(r"process_1|rank_1", p.name)
    ]


def test_ranks_with_folders_of_their_own_are_told_so(tmp_path, small_text):
    """Each composes its own config, so each finds its own checkpoint."""
    common = (*SMALL, f"data.path={small_text}", "ckpt_path=auto")
    run("train.py", *common, f"hydra.run.dir={tmp_path}/a")
    words = (*common, "trainer.max_steps=9")
    ranks = as_torchrun(*(("train.py", *words, f"hydra.run.dir={tmp_path}/{f}") for f in "ab"))
    for rank in ranks:
        _, err = rank.communicate(timeout=120)
        assert rank.returncode == 2, err
        assert "the ranks found different checkpoints (rank 0: last.ckpt; rank 1: none)" in err


def test_a_stopped_run_may_take_its_time_to_conclude(tmp_path, small_text):
    """The other ranks exit with the code of the signal, which does not count as a lost rank."""
    process = begin(
        tmp_path / "run", small_text, *LONG, "+callbacks.slow._target_=tests.ranks.SlowEnd"
    )
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"


def test_compiled_ranks_train_as_uncompiled_ones(tmp_path, small_text):
    """On quantized weights, too."""
    common = (
        *SMALL,
        f"data.path={small_text}",
        "trainer=ddp_sim",
        "trainer.max_steps=4",
        "trainer.log_every_n_steps=1",
        "quantization=int6",
        "quantization.training.start=0.0",
        "quantization.training.clip=1.0",
    )
    found = []
    for choice in ("true", "false"):
        folder = tmp_path / choice
        run("train.py", *common, f"compile={choice}", f"hydra.run.dir={folder}")
        found.append([float(loss) for loss in losses(folder).values()])
    compiled, plain = found
    assert len(compiled) == 4
    assert compiled == pytest.approx(plain, rel=1e-4)
    summary = json.loads((tmp_path / "true" / "summary.json").read_text())
    assert summary["compiled"]
    assert summary["compile_seconds"] > 0
