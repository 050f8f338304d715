"""Only one process writes to a run's folder, and all its records belong to one run."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Callback

from jepa_lm.commands import rank_process
from jepa_lm.commands import train as training
from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.run import train
from jepa_lm.study.launch import _job_words
from jepa_lm.training.run_folder import Record, claimed, set_later_aside
from jepa_lm.utils.errors import MACHINE, UserError
from jepa_lm.utils.files import write_json
from jepa_lm.utils.locks import only_writer
from tests.runs import with_callback


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        ".lock"
    }


@pytest.fixture
def killed(tmp_path):
    """The folder of a run that was killed before its first checkpoint, with older logs in it."""
    folder = tmp_path / "run"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    for name in ("metrics.csv", "config.json", "wandb_id", "tensorboard/events", "notes.txt"):
        (folder / name).write_text("x")
    return folder


def test_a_second_run_in_the_same_folder_is_told_so(small, tmp_path):
    with (
        only_writer(tmp_path / "run", "x"),
        pytest.raises(UserError, match=r"hydra\.run\.dir=.*run: another process is writing there"),
    ):
        train(small())
    assert files(tmp_path / "run") == set()


def test_a_new_run_in_the_folder_of_another_is_refused(killed):
    before = files(killed)
    with (
        pytest.raises(UserError, match=r"metrics\.csv, config\.json\); ckpt_path=auto resumes"),
        claimed(killed, None),
    ):
        pass
    assert files(killed) == before


def test_a_run_from_elsewhere_in_the_folder_of_another_is_refused_too(killed, trained):
    with pytest.raises(UserError, match="earlier run"), claimed(killed, str(trained.checkpoint)):
        pass


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_clean(killed):
    with claimed(killed, "auto") as resume:
        assert resume is None
        assert files(killed) == {"notes.txt"}


def test_a_job_of_a_sweep_that_is_tried_again_may_start_clean(killed):
    job = SimpleNamespace(folder="run", overrides=["seed=1"])
    config = {"ckpt_path": None, "logger": {}}
    assert "ckpt_path=auto" in _job_words(job, config, None, killed.parent)
    assert "ckpt_path=auto" not in _job_words(
        job, config, None, killed
    )  # there is no such folder yet


def test_a_finished_run_whose_checkpoints_are_gone_is_not_wiped(killed):
    write_json(killed / "summary.json", {"status": "finished", "val": {"bpb": 1.0}})
    with pytest.raises(UserError, match="holds a finished run"), claimed(killed, "auto"):
        pass
    assert (killed / "metrics.csv").is_file()


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / ".hydra").mkdir()
    with claimed(tmp_path, None) as resume:
        assert resume is None


def test_later_checkpoints_are_set_aside_when_damaged_and_kept_when_whole(trained, tmp_path):
    """A damaged one among the latest would push out whole checkpoints."""
    shutil.copytree(trained.folder / "checkpoints", tmp_path / "checkpoints")
    first, later = (tmp_path / "checkpoints" / f"step-{n}.ckpt" for n in (3, 6))
    with pytest.raises(UserError, match=r"holds a later checkpoint, step-6\.ckpt"):
        set_later_aside(tmp_path, first, 3)
    later.write_bytes(later.read_bytes()[:5000])
    set_later_aside(tmp_path, first, 3)
    assert not later.exists()
    assert (tmp_path / "checkpoints" / "step-6.ckpt.damaged").is_file()


def test_a_refused_start_takes_no_score_away(tmp_path):
    score = {"status": "finished", "val": {"bpb": 1.0}}
    write_json(tmp_path / "summary.json", score)
    Record(tmp_path, step=6).fail("refused", "run", 6)
    assert json.loads((tmp_path / "summary.json").read_text()) == score
    going = Record(tmp_path, step=6)
    going.fail("no number", "run", 7)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    going.write(score)
    going.fail("a rank was lost when all was over", MACHINE)
    assert json.loads((tmp_path / "summary.json").read_text()) == score


class AtStep3(Callback):
    """Calls a function after the third step, before it is logged."""

    def __init__(self, act) -> None:
        self.act = act

    def on_before_optimizer_step(self, trainer, task, optimizer):
        if trainer.global_step == 2:
            self.act(task)


@pytest.fixture
def at_step_3(small):
    def run(act, *overrides):
        with with_callback(AtStep3(act), first=True):
            train(small(*overrides))

    return run


@pytest.mark.parametrize("logger", ["csv", "none"])
def test_a_folder_that_vanishes_ends_the_run_in_one_line(at_step_3, tmp_path, logger):
    with pytest.raises(UserError, match=r"hydra\.run\.dir=.*: the folder of this run is gone"):
        at_step_3(lambda task: shutil.rmtree(tmp_path / "run"), f"logger={logger}")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers_are_never_saved(at_step_3, tmp_path):
    """The last update spoils the average, and no later loss would show it."""

    def spoil(task):
        task.averages.ema.model.embedding.table.weight[0, 0] = float("nan")

    short = ("trainer.max_steps=3", "checkpoint.every_n_steps=2", "average.decay=0.5")
    with pytest.raises(
        UserError,
        match=r"^averages\.ema\S+weight is nan at step 3: .*the last checkpoint .*step-2\.ckpt$",
    ):
        at_step_3(spoil, *short)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    folder = tmp_path / "run" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"step-2.ckpt", "last.ckpt"}
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 2


def test_a_rank_takes_texts_as_they_are(tmp_path, monkeypatch):
    """The first rank has resolved them; `${...}` in a prompt is plain text."""
    given = {"sampling": {"prompt": "${oc.env:HOME} ???"}, "clip": float("inf")}
    (tmp_path / "ranks.json").write_text(json.dumps(given))
    taken = []
    monkeypatch.setattr(training, "train_resolved", taken.append)
    monkeypatch.setattr(rank_process.process, "stop_with_parent", lambda: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_process.main(tmp_path / "ranks.json") == 0
    assert taken == [given]
