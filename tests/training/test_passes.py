"""A run reports how often its budget repeats its data, and warns once from the second pass on.

A pass of these runs takes four steps: in 32 windows, or in 4 chunks of 257 tokens.
"""

from __future__ import annotations

import json

import pytest

from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from tests.conftest import SMALL
from tests.processes import start
from tests.runs import fit

ORDERS = {
    "shuffle": ("data.order=shuffle", "data.train_tokens=1025"),
    "stream": ("data.order=stream", "data.train_tokens=1028"),
}
LASTS = "lasts for 4 steps"
SAID = "passes over the training split: "


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def warned(err: str) -> list[int]:
    """Return the line numbers of the warnings on stderr."""
    lines = err.splitlines()
    return [i for i, line in enumerate(lines) if line.startswith("warning: ") and LASTS in line]


def first_figures(err: str) -> int:
    """Return the line number of the first training figures, those of step 2."""
    return next(i for i, line in enumerate(err.splitlines()) if line.startswith("training "))


@pytest.mark.parametrize("order", ORDERS)
def test_a_budget_of_steps_is_told_before_it_starts(small, tmp_path, capsys, order):
    train(small(*ORDERS[order]))
    said = capsys.readouterr()
    assert summary(tmp_path / "run")["passes"] == 1.5
    assert f"{SAID}1.50" in said.err
    (place,) = warned(said.err)
    assert place < first_figures(said.err)
    assert "1.50 passes in all" in said.err.splitlines()[place]
    assert "passes over the training split" in said.out


@pytest.mark.parametrize("order", ORDERS)
def test_exactly_one_pass_repeats_nothing(small, tmp_path, capsys, order):
    """Planted bug: a comparison that is off by one step."""
    train(small(*ORDERS[order], "trainer.max_steps=4"))
    assert not warned(capsys.readouterr().err)
    assert summary(tmp_path / "run")["passes"] == 1.0


def test_where_seconds_may_end_it_before_the_second_pass_is_told_as_it_begins(
    small, tmp_path, capsys
):
    both = (*ORDERS["shuffle"], "trainer.max_time=1000")
    train(small(*both))
    err = capsys.readouterr().err
    assert f"{SAID}at most 1.50" in err
    (place,) = warned(err)
    assert place > first_figures(err)
    # Resumed in the second pass: a new process, so it warns again, once.
    more = (*both, "ckpt_path=auto", "trainer.max_steps=8")
    train(small(*more))
    err = capsys.readouterr().err
    assert f"{SAID}at most 2.00, 1.50 so far" in err
    assert len(warned(err)) == 1
    assert summary(tmp_path / "run")["passes"] == 2.0


@pytest.mark.parametrize(("steps", "times"), [(4, 0), (5, 1), (9, 1)])
def test_a_budget_of_seconds_is_told_when_the_second_pass_begins(small, capsys, steps, times):
    """On a clock that advances by a second with each step."""
    clock = ProgressClock(max_steps=None, max_time=float(steps), now=lambda: float(clock.step))
    limits = ("trainer.max_steps=null", f"trainer.max_time={steps}")
    task = fit(small(*ORDERS["shuffle"], *limits), clock=clock)
    assert task.clock.step == steps
    assert len(warned(capsys.readouterr().err)) == times


def test_a_run_by_the_wall_clock_records_what_it_came_to(small, tmp_path, capsys):
    train(small(*ORDERS["shuffle"], "trainer.max_steps=null", "trainer.max_time=0.5"))
    found, err = summary(tmp_path / "run"), capsys.readouterr().err
    assert "a pass over the training split takes 4 steps" in err
    assert found["passes"] == found["steps"] / 4
    assert len(warned(err)) == (found["steps"] > 4)


@pytest.mark.slow
def test_two_ranks_warn_once(small_text, tmp_path):
    words = (*SMALL, *ORDERS["shuffle"], f"data.path={small_text}", f"hydra.run.dir={tmp_path}/run")
    process = start("train.py", *words, "trainer=ddp_sim", "trainer.max_time=1000")
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    assert len(warned(err)) == 1
    assert summary(tmp_path / "run")["passes"] == 1.5


@pytest.mark.slow
def test_each_run_of_a_sweep_has_its_own_say_and_the_report_has_theirs(small_text, tmp_path):
    words = (*SMALL, *ORDERS["shuffle"], f"data.path={small_text}", f"hydra.sweep.dir={tmp_path}/s")
    process = start("train.py", "-m", *words, "seed=1,2")
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    found = [json.loads(path.read_text())["passes"] for path in tmp_path.rglob("summary.json")]
    assert found == [1.5, 1.5]
    assert len(warned(err)) == 2
    assert f"{SAID}1.50" in (tmp_path / "s" / "report.md").read_text()
