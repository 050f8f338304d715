"""Checkpoints and what goes on from them: whole or passed over, the newest few, all of the state."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from jepa_lm import training
from jepa_lm.callbacks.checkpoints import AtomicCheckpointIO
from jepa_lm.checkpoint import (
    checkpoints_in,
    find_checkpoint,
    find_resume,
    read_checkpoint,
)
from jepa_lm.errors import UserError
from jepa_lm.optim.clock import ProgressClock
from jepa_lm.run import train
from tests.runs import rows


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_few_stay_and_last_is_the_newest(small, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    train(small("checkpoint.every_n_steps=1", "checkpoint.keep=3"))
    assert names(folder) == ["last.ckpt", "step-4.ckpt", "step-5.ckpt", "step-6.ckpt"]
    assert os.path.samefile(folder / "last.ckpt", folder / "step-6.ckpt")
    assert [path.name for path in checkpoints_in(folder)] == [
        "last.ckpt",
        "step-5.ckpt",
        "step-4.ckpt",
    ]


def test_without_an_interval_there_is_one_at_the_end(small, tmp_path):
    train(small("checkpoint.every_n_steps=null"))
    assert names(tmp_path / "run" / "checkpoints") == ["last.ckpt", "step-6.ckpt"]


@pytest.mark.parametrize("key", ["keep=0", "every_n_steps=0"])
def test_settings_that_save_nothing_are_refused(small, key):
    with pytest.raises(UserError, match=rf"checkpoint\.{key}: at least 1"):
        train(small(f"checkpoint.{key}"))


def test_a_run_killed_before_its_first_checkpoint_starts_at_step_0_and_says_so(
    small, tmp_path, capsys
):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    train(small(f"ckpt_path={folder}"))
    assert f"{folder} has no checkpoint yet; training starts at step 0" in capsys.readouterr().err
    assert [row["step"] for row in rows(folder) if row["train/ce"]] == ["1", "3", "5"]


def test_last_is_the_newest_run_even_if_an_older_one_has_checkpoints(
    trained, tmp_path, monkeypatch, capsys
):
    """Going on from another run than the one that was killed would be worse than starting anew."""
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "logs" / "train" / "runs" / "old" / "checkpoints"
    new = tmp_path / "logs" / "train" / "runs" / "new" / "checkpoints"
    own = tmp_path / "logs" / "train" / "runs" / "own"
    old.mkdir(parents=True)
    shutil.copy(trained.checkpoint, old / "last.ckpt")
    found = find_resume("last", own)
    assert found is not None
    assert found.absolute() == old / "last.ckpt"
    new.mkdir(parents=True)
    os.utime(old, (1, 1))
    (own / "checkpoints").mkdir(parents=True)
    assert find_resume("last", own) is None
    assert "runs/new has no checkpoint yet" in capsys.readouterr().err
    assert find_checkpoint("last").absolute() == old / "last.ckpt"


def test_auto_goes_on_in_the_own_folder_or_starts(small, tmp_path):
    """What a requeued job runs: the same command again."""
    command = small("ckpt_path=auto", "trainer.max_steps=4")
    train(command)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    before = rows(tmp_path / "run")
    train(small("ckpt_path=auto", "trainer.max_steps=8"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 8
    assert [r["train/ce"] for r in rows(tmp_path / "run")[: len(before)]] == [
        r["train/ce"] for r in before
    ]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "step-1.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"step-1\.ckpt: cannot be written \(No space left"):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(3)}, path)
    assert names(tmp_path) == ["step-1.ckpt"]
    assert torch.equal(torch.load(path)["x"], torch.ones(3))


def test_what_a_killed_write_left_is_swept_up(small, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".step-3.ckpt.tmp").write_bytes(b"half")
    train(small())
    assert names(folder) == ["last.ckpt", "step-3.ckpt", "step-6.ckpt"]


class Ticks:
    """A clock that moves on by an eighth of a second, which adds up exactly, whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.125
        return self.now


EVERYTHING = (
    "objective=vicreg",
    "model.dim=64",
    "average.decay=0.9",
    "average.swa=true",
    "average.ship=best",
    "trainer.gradient_clip_val=0.5",
    "jepa.diagnostics.every=2",
    "checkpoint.every_n_steps=1",
    "checkpoint.keep=100",
    "optimizer.schedule.lr.fraction=0.7",
)


def under_a_budget(small, monkeypatch, *overrides, run_dir) -> None:
    """A run of 8 seconds of a clock that moves only when it is read, so that it can be repeated."""

    monkeypatch.setattr(training, "ProgressClock", partial(ProgressClock, now=Ticks()))
    budget = ("trainer.max_steps=null", "trainer.max_time=10")
    train(small(*EVERYTHING, *budget, *overrides, run_dir=run_dir))


def flat(prefix, value) -> dict:
    """A nested state as one mapping of leaves."""
    if isinstance(value, dict):
        return {
            k: v for key, node in value.items() for k, v in flat(f"{prefix}.{key}", node).items()
        }
    if isinstance(value, list | tuple):
        return {
            k: v for i, node in enumerate(value) for k, v in flat(f"{prefix}.{i}", node).items()
        }
    return {prefix: value}


def test_a_resumed_wall_clock_run_has_the_whole_state(small, tmp_path, monkeypatch):
    """Weights, optimizer, averages, data position, random state, clock, objective, scheduler."""
    under_a_budget(small, monkeypatch, run_dir=tmp_path / "whole")
    saved = sorted(
        (tmp_path / "whole" / "checkpoints").glob("step-*.ckpt"),
        key=lambda p: int(p.stem.removeprefix("step-")),
    )
    assert len(saved) > 8
    middle = saved[len(saved) // 2]
    under_a_budget(small, monkeypatch, f"ckpt_path={middle}", run_dir=tmp_path / "rest")
    a, b = (
        flat("", read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt"))
        for name in ("whole", "rest")
    )
    ours = (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "averages",
        "random",
        "clock",
        "watch",
    )
    for part in (*ours, "global_step", "shipped", "skipped"):
        keys = [key for key in a if key.startswith(f".{part}")]
        assert keys, part
        for key in keys:
            same = torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key]
            assert same, key
    assert any("target.encoder" in key for key in a)
    assert any("averages.swa" in key for key in a)
    assert a[".clock.elapsed"] > 8


class ForgetsTheClock(Callback):
    """The planted bug: elapsed time starts anew, so the learning rate is that of a young run."""

    def on_train_start(self, trainer, task):
        task.clock._before = 0.0


def test_a_lost_clock_would_be_seen(small, tmp_path, monkeypatch):
    make = training.make_trainer

    def forgetful(config):
        trainer = make(config)
        if config["ckpt_path"]:
            trainer.callbacks.append(ForgetsTheClock())
        return trainer

    monkeypatch.setattr(training, "make_trainer", forgetful)
    with pytest.raises(AssertionError):
        test_a_resumed_wall_clock_run_has_the_whole_state(small, tmp_path, monkeypatch)


def test_checkpoints_cost_no_training_time(small, tmp_path, monkeypatch):
    ticks = Ticks()
    save = AtomicCheckpointIO.save_checkpoint

    def slow(self, *args, **kwargs):
        ticks.now += 1000.0
        save(self, *args, **kwargs)

    monkeypatch.setattr(training, "ProgressClock", partial(ProgressClock, now=ticks))
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", slow)
    train(small("checkpoint.every_n_steps=2"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"] < 100


def test_a_run_that_has_used_up_its_seconds_trains_no_further(small, tmp_path, monkeypatch):
    """What a requeued job does: each start would otherwise add a step."""
    budget = ("trainer.max_steps=null", "trainer.max_time=3", "ckpt_path=auto")
    monkeypatch.setattr(training, "ProgressClock", partial(ProgressClock, now=Ticks()))
    train(small(*budget))
    first = json.loads((tmp_path / "run" / "summary.json").read_text())
    got = train(small(*budget))
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again["steps"] == first["steps"]
    assert again["seconds"] == pytest.approx(first["seconds"], abs=0.5)
    assert got == first["val"]["bpb"]


def test_new_settings_count_after_a_resume(small, tmp_path):
    """The advice of an error, to lower the learning rate, must not be overruled by the checkpoint."""
    train(small("trainer.max_steps=4"))
    lower = ("optimizer.groups.matrices.lr=1e-5", "optimizer.groups.matrices.weight_decay=0.3")
    train(small("trainer.max_steps=8", "ckpt_path=auto", *lower))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0]
    (group,) = [g for g in state["param_groups"] if g["name"] == "matrices"]
    assert group["lr"] < 1e-5
    assert (group["initial_lr"], group["weight_decay"]) == (1e-5, 0.3)


def test_another_number_of_micro_batches_is_refused(small, trained):
    more = ("trainer.accumulate_grad_batches=2", "trainer.max_steps=9")
    with pytest.raises(UserError, match=r"accumulate_grad_batches=1, now 2"):
        train(small(f"ckpt_path={trained.folder}", *more))


def test_a_copy_in_the_place_of_a_second_name_takes_no_ones_place(small, tmp_path, monkeypatch):
    """On disks without hard links."""

    def refuses(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuses)
    train(small("checkpoint.every_n_steps=2", "checkpoint.keep=2"))
    assert names(tmp_path / "run" / "checkpoints") == ["last.ckpt", "step-4.ckpt", "step-6.ckpt"]
