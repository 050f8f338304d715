"""Objectives over the steps of a run: resume, copies, every nth step, stages."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.run import train
from jepa_lm.utils.errors import UserError
from tests.runs import metrics, same, state, summary


@pytest.mark.parametrize("name", ["vicreg", "lewm", "recipes/pr1330"])
def test_resuming_is_exact(small, tmp_path, name):
    """Weights, copies that follow, draws and schedules: six steps, or only the last two repeated."""
    common = (f"objective={name}", "trainer.log_every_n_steps=1")
    common = (*common, "checkpoint.every_n_steps=4")
    train(small(*common, run_dir=tmp_path / "whole"))
    fourth = tmp_path / "whole" / "checkpoints" / "step-4.ckpt"
    train(small(*common, f"ckpt_path={fourth}", run_dir=tmp_path / "rest"))
    assert same(state(tmp_path / "whole"), state(tmp_path / "rest"))
    assert any("target" in n for n in state(tmp_path / "whole")) or name == "lewm"


def test_copies_move_once_for_each_optimizer_step(small, tmp_path, monkeypatch):
    from jepa_lm.objective.targets import EMA

    steps = []
    monkeypatch.setattr(EMA, "after_step", lambda self, m, p, clock: steps.append(clock.step))
    train(small("objective=vicreg", "trainer.accumulate_grad_batches=4"))
    assert steps == [0, 1, 2, 3, 4, 5]  # by the progress before the step, as published


def test_every_nth_step_leaves_the_others_alone(small, tmp_path):
    constant = "{_target_: jepa_lm.schedules.factors.Constant, value: 1.0}"
    nth = f"{{_target_: jepa_lm.schedules.factors.EveryNth, n: 3, schedule: {constant}}}"
    log = "trainer.log_every_n_steps=1"
    train(small("objective=recipes/pr2142", f"jepa.schedule={nth}", log, run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/weight") == pytest.approx([0.2, 0, 0, 0.2, 0, 0])
    assert len(metrics(tmp_path / "run", "jepa/loss")) == 2


def test_an_objective_that_is_off_whenever_logs_are_due_is_logged_all_the_same(small, tmp_path):
    constant = "{_target_: jepa_lm.schedules.factors.Constant, value: 1.0}"
    nth = f"{{_target_: jepa_lm.schedules.factors.EveryNth, n: 2, schedule: {constant}}}"
    train(small("objective=recipes/pr2142", f"jepa.schedule={nth}", run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/weight") == [0, 0, 0]  # logged on steps 1, 3, 5
    assert len(metrics(tmp_path / "run", "jepa/loss")) == 3


def test_stages_train_jepa_alone_then_both_then_cross_entropy(small, tmp_path):
    log = ("trainer.log_every_n_steps=1", "trainer.max_steps=10")
    points = (
        "jepa.schedule.points=[[0.3,1.0],[0.6,0.0]]",
        "jepa.ce_schedule.points=[[0.3,0.0],[0.6,1.0]]",
    )
    train(small("objective=recipes/pr1443", *log, *points, run_dir=tmp_path / "run"))
    total, ce = (metrics(tmp_path / "run", f"train/{n}") for n in ("loss", "ce"))
    aux = metrics(tmp_path / "run", "jepa/loss")
    assert total[:4] == pytest.approx(aux[:4], rel=1e-5)
    assert total[4] == pytest.approx(aux[4] * 2 / 3 + ce[4] / 3, rel=1e-4)
    assert total[6:] == pytest.approx(ce[6:])
    assert len(aux) == 6


def test_resuming_with_another_objective_of_equal_shape_is_refused(small, tmp_path):
    train(small("objective=none", run_dir=tmp_path / "run"))
    more = ("objective=recipes/pr1116", f"ckpt_path={tmp_path / 'run'}", "trainer.max_steps=9")
    with pytest.raises(UserError, match=r"was trained with a different jepa\._target_"):
        train(small(*more))


def test_what_is_compiled_is_recorded(small, tmp_path, monkeypatch):
    """Studies can refuse arms that differ in compilation, and the compiled wrapper is what runs."""
    calls = []

    def compiler(function):
        return lambda *a: calls.append(function.__name__) or function(*a)

    monkeypatch.setattr(torch, "compile", compiler)
    train(small("objective=vicreg", "compile=true", run_dir=tmp_path / "run"))
    assert calls == ["_losses"] * 6
    found = summary(tmp_path / "run")
    assert found["compiled"] is True
    assert found["compiled_parts"] == ["main pass", "cross entropy", "objective"]


# ---- export


@pytest.mark.parametrize(("when_zero", "moves"), [("skip", 0), ("multiply", 3)])
def test_a_phase_of_weight_zero_leaves_moments_alone_or_lets_them_run_on(
    small, tmp_path, when_zero, moves
):
    """#832 multiplies by zero: no weight decay there, but Adam's counter and momentum advance."""
    phases = ("jepa.schedule.points=[[0.0,1.0],[0.5,1.0],[0.5,0.0]]", f"jepa.when_zero={when_zero}")
    train(small("objective=chunk", *phases, run_dir=tmp_path / "run"))
    states = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0]
    counters = [state["step"].item() for state in states["state"].values() if "step" in state]
    assert {6.0 - 3 + moves} <= set(counters) <= {6.0, 6.0 - 3 + moves}


def test_weight_zero_is_none_whatever_zero_does_in_phases(small, tmp_path):
    off = ("objective=patch", "jepa.weight=0", "jepa.when_zero=multiply")
    train(small(*off, run_dir=tmp_path / "off"))
    train(small("objective=none", run_dir=tmp_path / "none"))
    none = state(tmp_path / "none")
    assert same(none, {n: t for n, t in state(tmp_path / "off").items() if n in none})
