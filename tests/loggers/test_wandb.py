"""Weights & Biases: its offline files hold what a server would receive."""

from __future__ import annotations

import os
import shutil
import signal
import sys

import pytest
from lightning.pytorch.callbacks import Callback

from jepa_lm import cli
from jepa_lm.loggers.run_logger import Ending
from jepa_lm.loggers.settings import fill_in, shared_settings
from jepa_lm.loggers.wandb_run import ID_FILE, WandbRun
from jepa_lm.run import train
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.signals import Stopped
from tests import wandb_file
from tests.conftest import OFFLINE, SMALL
from tests.runs import with_callback

wandb = pytest.importorskip("wandb")


def test_where_a_run_is_and_what_it_is_called(logged):
    run = logged.run
    assert (run.project, run.group, run.name) == ("jepa_lm", "weights", "vicreg 0.1 seed 1")
    assert (run.job_type, run.tags, run.exit_code) == ("train", {"a", "b"}, 0)


def test_the_whole_config_is_there_nested(logged):
    config = logged.run.config
    assert config["seed"] == 1337
    assert config["optimizer"]["groups"]["matrices"]["lr"] == 0.02
    assert config["jepa"]["regularizers"]["variance"]["gamma"] == 1.0
    assert config["model"]["backbone"]["layers"] == 3


def test_scores_over_steps_and_seconds_and_their_minimum(logged):
    run, val = logged.run, logged.summary["val"]
    scores = run.series("val/bpb")
    assert len(scores) == 2
    assert scores[-1] == pytest.approx(val["bpb"], rel=1e-6)
    assert run.summary["val/bpb"] == {"min": min(scores)}
    assert run.summary["val/nll"] == {"min": min(run.series("val/nll"))}
    assert run.series("final/bpb") == [val["bpb"]]
    rows = [row for row in run.history if "val/bpb" in row]
    assert [row["trainer/global_step"] for row in rows] == [2, 5]
    assert 0 < rows[0]["train/seconds"] < rows[1]["train/seconds"] <= logged.summary["seconds"]
    assert run.metrics["val/bpb"].step_metric == "trainer/global_step"
    assert len(run.series("train/loss")) == 3


def test_diagnostics_are_under_jepa(logged):
    ranks = logged.run.series("jepa/effective_rank")
    assert len(ranks) == 3
    assert ranks[-1] == pytest.approx(logged.summary["jepa"]["effective_rank"])


def test_the_summary_and_its_file_are_there(logged):
    run = logged.run
    for key in ("status", "seed", "steps", "tokens", "config_hash", "git", "versions"):
        assert run.summary[key] == logged.summary[key]
    assert run.summary["val"]["bpb"] == pytest.approx(logged.summary["val"]["bpb"])
    assert {"summary.json", "config.json"} <= run.files
    assert run.artifacts == {}  # nothing large unless requested


def test_a_minimum_is_no_last_value(tmp_path):
    """The score of the small run only falls; this one rises."""
    settings = dict.fromkeys(("project", "entity", "name", "group", "job_type"))
    logger = WandbRun(**settings, tags=[], offline=True, log_model=False, save_dir=str(tmp_path))
    for step, bpb in enumerate((3.0, 2.0, 2.5)):
        shares = {"val/solved": bpb / 4, "val/probe_level_2": bpb / 8}
        logger.log_metrics({"val/bpb": bpb, "train/ce": bpb, **shares}, step)
    score = {"nll": 2.5, "bpb": None, "tokens": 9, "bytes": 0, "solved": 0.5}
    logger.log_summary({"steps": 3, "val": score})
    logger.close(Ending("finished", 0))
    (run,) = wandb_file.runs_in(tmp_path)
    assert run.summary["val/bpb"] == {"min": 2.0}
    assert run.summary["train/ce"] == 2.5
    assert (run.summary["val/solved"], run.summary["val/probe_level_2"]) == (
        {"max": 0.75},
        {"max": 0.375},
    )
    assert (run.summary["final/nll"], run.summary["final/solved"]) == (2.5, 0.5)
    assert "final/bpb" not in run.summary


def test_a_file_still_being_written_holds_the_records_so_far(tmp_path):
    """W&B's own process writes in pieces of any length; `runs_in` reads until the run has ended."""
    settings = dict.fromkeys(("project", "entity", "name", "group", "job_type"))
    logger = WandbRun(**settings, tags=[], offline=True, log_model=False, save_dir=str(tmp_path))
    for step in range(100):
        logger.log_metrics({"train/ce": 1.0, "x" * 400: 2.0}, step)
    logger.close(Ending("finished", 0))
    wandb_file.runs_in(tmp_path)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data, whole = path.read_bytes(), wandb_file.records(path)
    assert len(data) > 2 * 32768  # so that records are cut in two by a block's end
    cut = tmp_path / "cut"
    for length in (0, 3, *range(7, len(data), 997)):
        cut.write_bytes(data[:length])
        found = wandb_file.records(cut)
        assert found == whole[: len(found)]
        assert len(found) < len(whole)


def test_jobs_of_a_multirun_are_runs_that_ended(tmp_path, small_text, monkeypatch):
    words = (*SMALL, f"data.path={small_text}", *OFFLINE, f"hydra.sweep.dir={tmp_path}")
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words, "seed=1,2", "trainer.max_steps=2"])
    assert cli.launch("train") == 0
    runs = [wandb_file.runs_in(tmp_path / "all" / f"seed-{seed}") for seed in (1, 2)]
    assert [len(found) for found in runs] == [1, 1]
    (first,), (second,) = runs
    assert (first.config["seed"], second.config["seed"]) == (1, 2)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.id != second.id
    assert len(first.series("train/loss")) == len(second.series("train/loss")) == 1
    assert ".hydra/overrides.yaml" in first.files
    assert wandb.run is None


class AtStep4(Callback):
    def __init__(self, action) -> None:
        self.action = action

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 3:
            self.action()


@pytest.fixture
def at_step_4(small):
    """at_step_4(action, overrides...) trains, and calls the action in the middle of step 4."""

    def run(action, *overrides):
        with with_callback(AtStep4(action), first=True):
            train(small(*overrides))

    return run


def test_a_failed_run_is_marked_failed(at_step_4, small, tmp_path):
    def fail():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        at_step_4(fail, *OFFLINE)
    (run,) = wandb_file.runs_in(tmp_path / "run")
    assert run.exit_code == 1
    assert run.summary["status"] == "failed"
    assert run.summary["error"] == "out of luck"
    train(small(*OFFLINE, "trainer.max_steps=2", run_dir=tmp_path / "next"))
    (after,) = wandb_file.runs_in(tmp_path / "next")
    assert after.exit_code == 0
    assert "error" not in after.summary


@pytest.mark.parametrize(("name", "preempted"), [("SIGTERM", True), ("SIGINT", False)])
def test_a_stopped_run_goes_on_under_its_id(at_step_4, small, tmp_path, name, preempted):
    signum = getattr(signal, name)
    with pytest.raises(Stopped):
        at_step_4(lambda: os.kill(os.getpid(), signum), *OFFLINE)
    train(small(*OFFLINE, "ckpt_path=auto"))
    first, second = wandb_file.runs_in(tmp_path / "run")
    assert first.id == second.id == (tmp_path / "run" / "wandb_id").read_text().strip()
    assert (first.exit_code, first.preempting) == (128 + signum, preempted)
    assert (second.exit_code, second.preempting) == (0, False)
    assert [row["trainer/global_step"] for row in second.history if "train/ce" in row] == [5]


def test_a_run_that_starts_anew_is_another_one(small, tmp_path):
    short = (*OFFLINE, "trainer.max_steps=1", "trainer.log_every_n_steps=1")
    train(small(*short))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "summary.json").unlink()  # as if killed before it saved anything
    train(small(*short, "ckpt_path=auto"))  # in the same folder, but from the start
    first, second = wandb_file.runs_in(tmp_path / "run")
    assert first.id != second.id


def test_an_offline_run_leaves_the_next_one_online(small, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(small(*OFFLINE, "trainer.max_steps=1"))
    assert os.environ["WANDB_MODE"] == "offline"  # Lightning's own logger would write dryrun


def test_the_last_checkpoint_is_an_artifact_when_asked(small, tmp_path):
    train(small(*OFFLINE, "trainer.max_steps=1", "logger.wandb.log_model=true"))
    (run,) = wandb_file.runs_in(tmp_path / "run")
    assert run.artifacts == {"model": {"last.ckpt"}}


def test_what_is_left_open_is_filled_in():
    def config(**wandb):
        return {"task_name": "t", "tags": ["x"], "logger": {"csv": {}, "wandb": wandb}}

    mine = config(project=None, group=None, name=None, job_type=None, tags=["x"])
    fill_in(mine, "train", resume=True)
    filled = mine["logger"]["wandb"]
    assert filled == {
        "project": None,
        "group": "t",
        "name": None,
        "job_type": "train",
        "tags": ["x"],
        "resume": True,
    }
    chosen = config(project="p", group="g", name=None, job_type="ablation", tags=["y"])
    fill_in(chosen, "eval", shared={"project": "q", "group": "s", "name": "n", "tags": ["x", "y"]})
    assert chosen["logger"]["wandb"] == {
        "project": "p",
        "group": "g",
        "name": "n",
        "job_type": "ablation",
        "tags": ["x", "y"],
        "resume": False,
    }
    without: dict = {"task_name": "t", "tags": [], "logger": {"csv": {}}}
    assert shared_settings(without) == {"group": "t", "tags": []}
    fill_in(without, "train")
    assert without["logger"] == {"csv": {}}


def test_what_wandb_would_not_take_is_refused_or_made_to_fit():
    """Names and tags that are too long, and a shared record with values of the wrong type."""

    def filled(task="t", shared=None, **wandb):
        config = {"task_name": task, "tags": [], "logger": {"wandb": {"tags": [], **wandb}}}
        fill_in(config, "eval", shared=shared)
        return config["logger"]["wandb"]

    for wandb, says in (
        ({"tags": ["a", "b" * 65]}, r"tags=b+: has 65 characters; W&B allows 1 to 64"),
        ({"tags": [""]}, "tags=: has 0 characters"),
        (
            {"name": "n" * 129},
            r"logger\.wandb\.name=n+\.\.\.: has 129 characters; W&B allows at most 128",
        ),
        (
            {"project": "a/b#c"},
            r"logger\.wandb\.project=a/b#c: W&B does not allow / # in a project name",
        ),
    ):
        with pytest.raises(UserError, match=says):
            filled(**wandb)
    assert filled(tags=["a" * 64, "b", "b"])["tags"] == ["a" * 64, "b"]
    long = filled(task="t" * 300)["group"]
    assert (len(long), long[:119]) == (128, "t" * 119)
    assert long != filled(task="t" * 301)["group"]
    # As another program, or an edit by hand, may have left it beside an artifact.
    damaged = {"group": 5, "name": ["n"], "tags": "abc", "project": None, "entity": "e", "x": "y"}
    assert filled(shared=damaged) == {
        "group": "t",
        "job_type": "eval",
        "entity": "e",
        "tags": [],
        "resume": False,
    }
    assert filled(shared={"tags": ["b" * 70, 3, ""]})["tags"][0].startswith("b" * 55 + "-")


def test_a_kept_id_that_is_none_is_named(tmp_path):
    logger = object.__new__(WandbRun)
    logger.folder = tmp_path
    for content, kept in ((b"", None), (b"ab_1-2\n", "ab_1-2")):
        (tmp_path / ID_FILE).write_bytes(content)
        assert logger._kept_id() == kept
    (tmp_path / ID_FILE).write_bytes(b"../a\x1b[31m")
    with pytest.raises(UserError, match="does not hold the id of a W&B run; delete it"):
        logger._kept_id()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("logger.wandb.offline=maybe", "logger.wandb.offline=maybe: expected true or false"),
        ("logger.wandb.tags=a", "logger.wandb.tags=a: expected a list"),
        ("+logger.wandb.grup=a", "did you mean logger.wandb.group"),
    ],
)
def test_mistakes_are_told_in_one_line(small, override, says):
    with pytest.raises(UserError, match=says):
        train(small("logger=wandb", override))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = dict.fromkeys(("project", "entity", "name", "group", "job_type"))
    with pytest.raises(UserError, match="pip install wandb"):
        WandbRun(**settings, tags=[], offline=True, log_model=False, save_dir="nowhere")
