"""Runs with a token objective: controls, logs, resuming, and what describe=true says."""

from __future__ import annotations

import json

import pytest

from jepa_lm.commands.describe import describe
from jepa_lm.run import train
from tests.objective.conftest import TOKENS
from tests.runs import metrics, same, state, summary

FAST = ("mtp_sequential",)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in TOKENS]
)
def test_weight_zero_is_none_bit_for_bit(small, tmp_path, name):
    train(small(run_dir=tmp_path / "none"))
    train(small(f"objective={name}", "tokens.weight=0", run_dir=tmp_path / "zero"))
    none = state(tmp_path / "none", "model.")
    assert same(state(tmp_path / "zero", "model."), none)
    assert summary(tmp_path / "zero")["val"] == summary(tmp_path / "none")["val"]
    assert not metrics(tmp_path / "zero", "tokens/loss")


def test_a_run_with_both_kinds_of_loss_logs_and_measures_both(small, tmp_path):
    words = ("objective=patch", "tokens=mir", "trainer.log_every_n_steps=1")
    every = ("jepa.diagnostics.every=2", "tokens.diagnostics_every=2")
    train(small(*words, *every, run_dir=tmp_path))
    for column in ("jepa/loss", "tokens/loss", "tokens/share"):
        assert len(metrics(tmp_path, column)) == 6, column
    assert set(metrics(tmp_path, "tokens/weight")) == {0.4}
    assert metrics(tmp_path, "tokens/offset_0")
    shares = metrics(tmp_path, "tokens/trunk_gradient_share")
    assert len(shares) == 3
    assert 0 < min(shares) < max(shares) < 1
    found = summary(tmp_path)
    assert found["token_loss"]["trunk_gradient_share"] == pytest.approx(shares[-1])
    assert found["jepa"]["trunk_gradient_share"] > 0
    total, latent, token = (metrics(tmp_path, f"{n}/loss")[0] for n in ("train", "jepa", "tokens"))
    ce = metrics(tmp_path, "train/ce")[0]
    assert total == pytest.approx(ce + 0.1 * latent + 0.4 * token, rel=1e-4)


@pytest.mark.slow
def test_a_run_that_is_not_measured_is_the_same(small, tmp_path):
    for name, every in (("often", 1), ("never", 1000)):
        words = ("objective=mtp_parallel", f"tokens.diagnostics_every={every}")
        train(small(*words, run_dir=tmp_path / name))
    assert same(state(tmp_path / "often"), state(tmp_path / "never"))


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(small, tmp_path):
    """With draws of both losses and of the noise, and weights that fade."""
    fade = "+tokens.schedule={_target_: jepa_lm.schedules.factors.Linear, start: 1.0, end: 0.5}"
    words = ("objective=vicreg", "tokens=mir", "data.noise=0.15", fade)
    train(small(*words, run_dir=tmp_path / "whole"))
    source = tmp_path / "whole" / "checkpoints" / "step-3.ckpt"
    train(small(*words, f"ckpt_path={source}", run_dir=tmp_path / "again"))
    assert same(state(tmp_path / "again"), state(tmp_path / "whole"))
    assert summary(tmp_path / "again")["val"] == summary(tmp_path / "whole")["val"]


@pytest.mark.slow
def test_describe_knows_what_a_token_loss_adds(build):
    task = build("objective=mtp_sequential")
    found = describe(task)
    head = sum(p.numel() for p in task.tokens.parameters())
    assert found["parameters"]["training_only"] == head
    # Its own products and one more with the token table, 6 FLOPs for each weight.
    assert found["flops_per_token"]["objective"] >= 6 * (head + 400 * 64)
    reach = found["gradient_reach"]
    assert reach["tokens"]["tokens.head"] > 0
    assert reach["tokens"]["model.backbone.blocks.0"] > 0
    assert reach["ce"]["tokens.head"] == 0
    assert found["optimizer"]["groups"]["tokens"]["values"] == head
    assert json.dumps(found)
