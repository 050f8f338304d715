"""A NaN or infinite loss or gradient stops the run and is named, or its step is left out."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.objective import LatentPrediction
from jepa_lm.run import train
from jepa_lm.training.guard import Finding, FiniteGuard, report
from jepa_lm.utils.errors import UserError
from tests.runs import rows, with_callback

NAN = float("nan")


@pytest.fixture
def poisoned(small):
    """poisoned({3: nan}, overrides...) trains with values added to the gradient of these steps."""

    def run(values, *overrides, **settings):
        class Poison(Callback):
            def on_after_backward(self, trainer, task):
                value = values.get(trainer.global_step + 1)
                if value is not None:
                    task.model.backbone.skip_weights.grad[0, 0] += value

        with with_callback(Poison(), first=True):
            return train(small(*overrides, **settings))

    return run


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_the_step_of_a_bad_gradient_is_named(poisoned, tmp_path, value):
    every = ("trainer.max_steps=20", "trainer.log_every_n_steps=10", "checkpoint.every_n_steps=2")
    with pytest.raises(UserError, match=rf"gradient is {value} at step 5.*step-4\.ckpt"):
        poisoned({5: value}, *every)
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*.ckpt"))
    assert [p.name for p in kept] == ["step-2.ckpt", "step-4.ckpt"]
    state = read_checkpoint(kept[-1])["state_dict"]
    assert all(t.isfinite().all() for t in state.values())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_the_component_of_a_bad_loss_is_named(small, monkeypatch):
    components = LatentPrediction.components

    def spoiled(self, model, batch, main, step_context):
        found = components(self, model, batch, main, step_context)
        if step_context.clock.step == 2:
            found["prediction"] = found["prediction"] * NAN
        return found

    monkeypatch.setattr(LatentPrediction, "components", spoiled)
    cfg = small("objective=vicreg", "jepa.diagnostics.every=1000", "trainer.log_every_n_steps=6")
    with pytest.raises(UserError, match=r"jepa/prediction is nan at step 3"):
        train(cfg)


def test_bad_steps_are_left_out_on_request(poisoned, tmp_path, capsys):
    values = {2: NAN, 4: float("inf")}
    poisoned(values, "guard.skip=2", run_dir=tmp_path / "skipping")
    said = capsys.readouterr().err
    assert "gradient is nan at step 2" in said
    assert "(2 of guard.skip=2)" in said
    found = json.loads((tmp_path / "skipping" / "summary.json").read_text())
    assert (found["status"], found["steps"], found["skipped_steps"]) == ("finished", 6, 2)
    state = read_checkpoint(tmp_path / "skipping" / "checkpoints" / "last.ckpt")
    assert all(t.isfinite().all() for t in state["state_dict"].values())
    counted = [
        s["step"].item() for s in state["optimizer_states"][0]["state"].values() if "step" in s
    ]
    assert set(counted) == {4.0}


def test_more_bad_steps_than_allowed_stop_the_run(poisoned):
    with pytest.raises(UserError, match="gradient is nan at step 4"):
        poisoned({2: NAN, 4: NAN}, "guard.skip=1")


def test_a_left_out_step_changes_nothing_but_the_clock(poisoned, tmp_path):
    """Weights after step 3 are those before step 2, moved by step 3 alone."""
    saved = ("checkpoint.every_n_steps=1", "checkpoint.keep=9", "trainer.max_steps=3")
    poisoned({2: NAN}, "guard.skip=1", *saved)
    first, second = (
        read_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{n}.ckpt") for n in (1, 2)
    )
    assert all(torch.equal(t, second["state_dict"][n]) for n, t in first["state_dict"].items())
    assert second["clock"]["step"] == 2


def test_the_gradient_norm_is_logged_before_it_is_clipped(small, tmp_path):
    train(small("trainer.gradient_clip_val=0.001"))
    norms = [float(r["train/gradient_norm"]) for r in rows(tmp_path / "run") if r["train/ce"]]
    assert min(norms) > 0.01


def test_nothing_is_read_between_log_points(small, monkeypatch):
    """One read of the device at a log point, none between."""
    reads = []
    first = FiniteGuard.first
    monkeypatch.setattr(FiniteGuard, "first", lambda self: reads.append(1) or first(self))
    train(
        small(
            "trainer.max_steps=12", "trainer.log_every_n_steps=6", "checkpoint.every_n_steps=null"
        )
    )
    assert len(reads) <= 4  # two log points, the end, the final save


def test_a_negative_number_of_steps_to_skip_is_refused(small):
    with pytest.raises(UserError, match=r"guard\.skip=-1: expected a whole number of at least 0"):
        train(small("guard.skip=-1"))


def test_the_report_names_the_rank_where_it_began():
    found = [Finding(7, "gradient", NAN, 0), Finding(7, "jepa/prediction", NAN, 2)]
    message = str(report(found, None, ranks=4))
    assert message.startswith("jepa/prediction is nan at step 7 on rank 2: training stopped")
    assert message.endswith("is none yet")
