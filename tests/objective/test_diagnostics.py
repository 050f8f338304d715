"""Diagnostics of an objective: their values, and that measuring changes nothing."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.model.checkpoint import inference_model, read_checkpoint
from jepa_lm.objective.latent_monitor import LatentMonitor
from jepa_lm.run import train
from jepa_lm.utils.config import build as build_node
from tests.objective.conftest import (
    DEEP_ENOUGH,
    at,
    noise,
    random_batch,
)
from tests.runs import metrics, same, state, summary


def test_diagnostics_are_logged_on_their_interval(small, tmp_path):
    every = ("jepa.diagnostics.every=4", "jepa.diagnostics.per_layer=true")
    train(small("objective=lewm", *every, run_dir=tmp_path / "run"))
    for name in (
        "cosine",
        "cosine_of_mean",
        "cosine_of_copy",
        "r2",
        "r2_of_copy",
        "effective_rank",
        "target_std_min",
        "target_std_median",
        "target_std_dead",
        "target_covariance_off_diagonal",
        "trunk_gradient_share",
        "trunk_gradient_cosine",
        "trunk_step_cosine",
        "block_2_gradient_share",
    ):
        assert len(metrics(tmp_path / "run", f"jepa/{name}")) == 1, name
    assert len(metrics(tmp_path / "run", "jepa/loss")) == 3
    shares = [metrics(tmp_path / "run", f"jepa/{n}_share") for n in ("prediction", "sigreg")]
    total = metrics(tmp_path / "run", "jepa/share")
    assert [a + b for a, b in zip(*shares, strict=True)] == pytest.approx(total, rel=1e-4)
    assert summary(tmp_path / "run")["jepa"]["collapse"] is None


@pytest.mark.parametrize(
    "objective", ["vicreg", pytest.param("recipes/pr1556", marks=pytest.mark.slow)]
)  # the latter has dropout
def test_measuring_changes_nothing(small, tmp_path, objective):
    for name, every in (("often", 1), ("never", 1000)):
        more = (f"jepa.diagnostics.every={every}", *DEEP_ENOUGH.get(objective, ()))
        train(small(f"objective={objective}", *more, run_dir=tmp_path / name))
    assert same(state(tmp_path / "often"), state(tmp_path / "never"))


def test_gradients_are_compared_as_weighted(build):
    """Half the weight of cross entropy doubles the ratio of the two norms."""
    task = build("objective=lewm", "jepa.weight=0.01")
    noise(task)
    ratios = []
    monitor = LatentMonitor(task.objective)
    for weight in (1.0, 0.5, 0.0):
        monitor.measure(task.model, random_batch(), at(), step=1, ce_weight=weight)
        share = monitor.figures["trunk_gradient_share"]
        ratios.append(share / max(1 - share, 1e-9))
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=1e-3)
    assert ratios[2] > 1e6


def test_a_frozen_trunk_is_measured_without_it(small, tmp_path):
    frozen = "optimizer.freeze=['model.backbone.*']"
    every = "jepa.diagnostics.every=2"
    train(small("objective=lewm", frozen, every, run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/r2")
    assert not metrics(tmp_path / "run", "jepa/trunk_gradient_share")


def test_the_distance_of_a_copy_is_logged(small, tmp_path):
    train(small("objective=vicreg", "jepa.diagnostics.every=2", run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/ema_distance")[-1] > 0
    assert metrics(tmp_path / "run", "jepa/target_variance")  # weight 0: measured nevertheless


def test_the_alarm_survives_a_resume(small, tmp_path):
    """Two low readings before the checkpoint and one after it make three; the first does not count."""
    overrides = (
        "objective=lewm",
        "jepa.diagnostics.every=2",
        "jepa.diagnostics.min_std=1",  # no latent's mean is exactly zero
        "trainer.max_steps=10",
        "checkpoint.every_n_steps=6",
    )
    train(small(*overrides, run_dir=tmp_path / "whole"))
    sixth = tmp_path / "whole" / "checkpoints" / "step-6.ckpt"
    train(small(*overrides, f"ckpt_path={sixth}", run_dir=tmp_path / "rest"))
    runs = [summary(tmp_path / name)["jepa"]["collapse"] for name in ("whole", "rest")]
    assert runs[0] == runs[1]
    assert runs[0]["step"] == 8


def test_measuring_is_no_training_time(small, tmp_path, monkeypatch):
    ran = []

    def measure(self, model, batch, step_context, *, step, ce_weight, first_steps):
        ran.append(step_context.clock.running)
        return []

    monkeypatch.setattr(LatentMonitor, "measure", measure)
    train(small("objective=lewm", "jepa.diagnostics.every=2", run_dir=tmp_path / "run"))
    assert ran == [False, False, False]
    assert summary(tmp_path / "run")["seconds"] > 0


def test_a_measurement_reads_few_tokens_but_two_rows(small, tmp_path, monkeypatch):
    """A whole micro-batch of a GPU would take more memory than training."""
    read = []

    def measure(self, model, batch, step_context, *, step, ce_weight, first_steps):
        read.append({name: len(ids) for name, ids in batch.items()})
        return []

    monkeypatch.setattr(LatentMonitor, "measure", measure)
    for tokens in (100, 10):
        monkeypatch.setattr("jepa_lm.training.callbacks.monitor.TOKENS", tokens)
        sizes = ("trainer.max_steps=1", "jepa.diagnostics.every=1")  # of 8 rows of 32 tokens
        train(small("objective=lewm", *sizes, run_dir=tmp_path / str(tokens)))
    assert read == [{"inputs": 3, "targets": 3}, {"inputs": 2, "targets": 2}]


@pytest.mark.parametrize("added", [("objective=lewm", "jepa.weight=5"), ("z_loss_weight=0.5",)])
def test_validation_holds_no_added_loss(small, tmp_path, added):
    """Validation reports the model's cross entropy, whatever loss it was trained with."""
    train(small(*added, run_dir=tmp_path / "run"))
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    data = build_node("data", checkpoint["hyper_parameters"]["config"]["data"])
    data.prepare_data()
    data.setup()
    model, nll, tokens = inference_model(checkpoint), 0.0, 0
    with torch.no_grad():
        windows = data.split("val").windows()
        for batch in (windows[i] for i in range(len(windows))):
            logits = model(batch["inputs"])[0]
            real = batch["targets"] >= 0
            picked = logits.log_softmax(-1).gather(-1, batch["targets"].clamp(min=0)[..., None])
            nll -= picked[..., 0][real].sum().item()
            tokens += int(real.sum())
    found = summary(tmp_path / "run")["val"]
    assert tokens == found["tokens"]
    assert nll / tokens == pytest.approx(found["nll"], rel=1e-5)
