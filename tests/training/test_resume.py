"""Checkpoints and resuming: whole or skipped, the latest few kept, the complete state restored."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from jepa_lm.commands import train as training
from jepa_lm.loggers.metrics_csv import AppendingCSVLogger, validated
from jepa_lm.model.checkpoint import checkpoints_in, read_checkpoint
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.callbacks.checkpoints import AtomicCheckpointIO
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import HOST
from tests.comparing import compare_runs, leaves, same
from tests.runs import rows, with_callback


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
    with pytest.raises(
        UserError, match=rf"checkpoint\.{key}: expected a whole number of at least 1"
    ):
        train(small(f"checkpoint.{key}"))


def test_auto_goes_on_in_the_own_folder_or_starts(small, tmp_path):
    """A requeued job runs the same command again."""
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
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [place / f".{HOST}-{gone.pid}-abc.tmp" for place in (folder, folder.parent)]
    for path in left:
        path.write_bytes(b"half")
    train(small("trainer.max_steps=3"))
    assert names(folder) == ["last.ckpt", "step-3.ckpt"]
    assert not left[1].exists()


class Ticks:
    """A clock that advances at each reading by 1/8 s, which floating point adds exactly."""

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
    """Train for 10 simulated seconds; the clock moves only when read, so the run can be repeated."""

    monkeypatch.setattr(training, "ProgressClock", partial(ProgressClock, now=Ticks()))
    budget = ("trainer.max_steps=null", "trainer.max_time=10")
    train(small(*EVERYTHING, *budget, *overrides, run_dir=run_dir))


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
        leaves("", read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt"))
        for name in ("whole", "rest")
    )
    ours = (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "averages",
        "random",
        "clock",
        "callbacks.MeasureObjective",
        "callbacks.FiniteGuard",
    )
    for part in (*ours, "global_step", "shipped"):
        keys = [key for key in a if key.startswith(f".{part}")]
        assert keys, part
        for key in keys:
            assert same(a[key], b[key]), key
    assert any("target.encoder" in key for key in a)
    assert any("averages.swa" in key for key in a)
    assert a[".clock.elapsed"] > 8


class ForgetsTheClock(Callback):
    """Planted bug: elapsed time restarts at zero, so the learning rate is that of a young run."""

    def on_train_start(self, trainer, task):
        task.clock._before = 0.0


@pytest.mark.slow
def test_a_lost_clock_would_be_seen(small, tmp_path, monkeypatch):
    forgetful = with_callback(ForgetsTheClock(), when=lambda config: bool(config["ckpt_path"]))
    with forgetful, pytest.raises(AssertionError, match="state_dict"):
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
    """A requeued job must not add a step at each start."""
    budget = ("trainer.max_steps=null", "trainer.max_time=3", "ckpt_path=auto")
    monkeypatch.setattr(training, "ProgressClock", partial(ProgressClock, now=Ticks()))
    train(small(*budget))
    first = json.loads((tmp_path / "run" / "summary.json").read_text())
    recorded = rows(tmp_path / "run")
    got = train(small(*budget))
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert rows(tmp_path / "run") == recorded  # scored again, but not written again
    assert again["steps"] == first["steps"]
    assert again["seconds"] == pytest.approx(first["seconds"], abs=0.5)
    assert got == first["val"]["bpb"]


def test_new_settings_count_after_a_resume_and_are_listed(small, tmp_path, capsys):
    """An error's advice to lower the learning rate must not be overruled by the checkpoint."""
    train(small("trainer.max_steps=4"))
    lower = ("optimizer.groups.matrices.lr=1e-5", "optimizer.groups.matrices.weight_decay=0.3")
    train(small("trainer.max_steps=8", "ckpt_path=auto", *lower))
    said = capsys.readouterr().err
    assert (
        "goes on with other settings (optimizer.groups.matrices.lr: was 0.02, is now 1e-05;" in said
    )
    assert "optimizer.groups.matrices.weight_decay: was 0.0, is now 0.3)" in said
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0]
    (group,) = [g for g in state["param_groups"] if g["name"] == "matrices"]
    assert group["lr"] < 1e-5
    assert (group["initial_lr"], group["weight_decay"]) == (1e-5, 0.3)


class Killed(BaseException):
    """Ends a run without any handler, as a kill does."""


@pytest.mark.parametrize("ship", ["ema", "best"])
def test_a_kill_in_a_validation_loses_no_row_and_no_choice(small, tmp_path, monkeypatch, ship):
    """A checkpoint is written before its step's validation, which the resumed run must catch up on."""
    common = (
        *(
            "trainer.val_check_interval=2",
            "checkpoint.every_n_steps=2",
            "trainer.log_every_n_steps=1",
        ),
        *("trainer.limit_val_batches=1", "average.decay=0.5", f"average.ship={ship}"),
        *("trainer.max_steps=5", "ckpt_path=auto", "checkpoint.keep=9"),
    )
    validate = LanguageModelTask.validation_step

    def dies(self, batch, index):
        if self.trainer.global_step == 4:
            raise Killed
        return validate(self, batch, index)

    train(small(*common, run_dir=tmp_path / "whole"))
    monkeypatch.setattr(LanguageModelTask, "validation_step", dies)
    with pytest.raises(Killed):
        train(small(*common, run_dir=tmp_path / "killed"))
    monkeypatch.setattr(LanguageModelTask, "validation_step", validate)
    train(small(*common, run_dir=tmp_path / "killed"))
    compare_runs(tmp_path / "whole", tmp_path / "killed")


def test_rows_that_come_again_are_taken_out_and_a_recorded_validation_is_seen(tmp_path):
    logger = AppendingCSVLogger(save_dir=str(tmp_path))
    for step in range(4):
        logger.log_metrics({"train/ce": float(step)}, step)
        logger.log_metrics({"val/bpb": 2.0, "val/nll": 1.5}, step) if step == 1 else None
    logger.save()
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("2,,9.0")  # a validation whose row was cut off by a kill
    assert validated(tmp_path, 2)
    assert not validated(tmp_path, 3)
    AppendingCSVLogger(save_dir=str(tmp_path)).goes_on(2)
    assert [(row["step"], row["val/bpb"]) for row in rows(tmp_path)] == [
        ("0", ""),
        ("1", ""),
        ("1", "2.0"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_copy_in_the_place_of_a_second_name_takes_no_ones_place(small, tmp_path, monkeypatch):
    """On file systems without hard links."""

    def refuses(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuses)
    train(small("checkpoint.every_n_steps=2", "checkpoint.keep=2"))
    assert names(tmp_path / "run" / "checkpoints") == ["last.ckpt", "step-4.ckpt", "step-6.ckpt"]
