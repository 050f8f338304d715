"""Ghost warm-up (#903) keeps the optimizer's moments, and nothing else of those steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from jepa_lm.run import train
from jepa_lm.training import module as lit
from jepa_lm.training.ghost import run_ghost_steps
from jepa_lm.utils.errors import UserError
from tests.runs import with_callback


class Watcher(Callback):
    """Records the state of a run at its start, and its first batch."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step == 0 and batch_idx == 0:
            self.weights = {n: t.clone() for n, t in task.state_dict().items()}
            state = trainer.optimizers[0].state
            self.moments = [
                s[k].norm().item()
                for s in state.values()
                for k in ("momentum_buffer", "exp_avg", "exp_avg_sq")
                if k in s
            ]
            self.counters = [s["step"].item() for s in state.values() if "step" in s]
            self.elapsed = task.clock.elapsed
            self.batch = batch["inputs"].clone()
            self.random = torch.rand(())


@pytest.fixture
def watched(small, tmp_path):
    """watched(overrides...) trains and returns the watcher."""
    runs: list[Path] = []

    def run(*overrides):
        watcher = Watcher()
        runs.append(tmp_path / str(len(runs)))
        with with_callback(watcher):
            train(small(*overrides, run_dir=runs[-1]))
        return watcher

    return run


LEWM = ("objective=lewm", "average.decay=0.9", "trainer.max_steps=2", "trainer.log_every_n_steps=1")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moments_are_kept_and_everything_else_is_put_back(watched, accumulate):
    common = (
        *LEWM,
        f"trainer.accumulate_grad_batches={accumulate}",
        "trainer.gradient_clip_val=1.0",
    )
    plain = watched(*common)
    ghost = watched(*common, "optimizer.ghost_steps=3")
    assert plain.moments == []
    assert len(ghost.moments) > 20
    assert sum(m > 0 for m in ghost.moments) > 0.8 * len(ghost.moments)
    assert set(ghost.counters) == {0.0}
    assert plain.weights.keys() == ghost.weights.keys()
    for name, start in plain.weights.items():
        assert torch.equal(start, ghost.weights[name]), name
    assert torch.equal(plain.batch, ghost.batch)
    assert ghost.random == plain.random
    assert ghost.elapsed < 0.5  # its clock has not advanced


def test_the_moments_are_those_of_plain_steps(small, watched, monkeypatch):
    """Three ghost steps see the batches and take the steps that three real steps would."""
    seen = {}

    class AtThree(Callback):
        def on_train_batch_end(self, trainer, task, *args):
            if trainer.global_step == 3:
                seen["real"] = [
                    s["momentum_buffer"].clone()
                    for s in trainer.optimizers[0].state.values()
                    if "momentum_buffer" in s
                ]

    constant = (
        "trainer.max_steps=3",
        "optimizer.schedule.lr.fraction=0",
        "optimizer.schedule.muon_momentum.steps=1000000",
        "optimizer.groups.matrices.momentum=0.85",  # where the schedule starts
    )
    with with_callback(AtThree()):
        train(small(*constant))
    ghost = watched(*constant, "optimizer.ghost_steps=3")
    real = [t.norm().item() for t in seen["real"]]
    close = [any(abs(m - r) < 1e-4 * max(r, 1e-6) for m in ghost.moments) for r in real]
    assert all(close)


def test_weights_that_are_not_put_back_would_be_seen(watched, monkeypatch):
    """Planted bug: ghost steps that move the model."""
    plain = watched(*LEWM)

    def careless(task, steps):
        load = task.load_state_dict
        task.load_state_dict = lambda state: None
        run_ghost_steps(task, steps)
        task.load_state_dict = load

    monkeypatch.setattr(lit, "run_ghost_steps", careless)
    ghost = watched(*LEWM, "optimizer.ghost_steps=3")
    assert any(not torch.equal(t, ghost.weights[n]) for n, t in plain.weights.items())


def test_a_resumed_run_has_no_ghosts(small, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(lit, "run_ghost_steps", lambda task, steps: ran.append(steps))
    ghost = "optimizer.ghost_steps=2"
    train(small(ghost, "trainer.max_steps=3", run_dir=tmp_path / "a"))
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    train(small(ghost, f"ckpt_path={last}", run_dir=tmp_path / "b"))
    assert ran == [2]


def test_a_negative_number_is_named(small):
    with pytest.raises(
        UserError, match=r"optimizer\.ghost_steps=-1: expected a whole number of at least 0"
    ):
        train(small("optimizer.ghost_steps=-1"))
