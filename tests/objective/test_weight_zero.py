"""Objectives whose loss reaches nothing: weight 0, controls of injected latents, a frozen predictor."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.run import train
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import (
    DEEP_ENOUGH,
    FROZEN,
    NOW,
    ZERO,
    auxiliary,
    every_but,
    random_batch,
)
from tests.runs import metrics, same, state, summary


@pytest.fixture(scope="module")
def plain(tmp_path_factory, small_text):
    """Folders of runs with objective=none, by extra overrides."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from jepa_lm.utils.paths import CONF
    from tests.conftest import SMALL

    runs: dict = {}

    def run(*overrides: str):
        if overrides not in runs:
            folder = tmp_path_factory.mktemp("none")
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                where = [f"paths.run_dir={folder}", f"data.path={small_text}"]
                train(hydra.compose("train", overrides=[*SMALL, *where, *overrides]))
            runs[overrides] = folder
        return runs[overrides]

    return run


# ---- controls


@pytest.mark.parametrize("name", every_but("chunk"))
def test_weight_zero_with_modules_present_is_none_step_for_step(small, plain, tmp_path, name):
    more = DEEP_ENOUGH.get(name, ())
    train(small(f"objective={name}", "jepa.weight=0", *more, run_dir=tmp_path / "zero"))
    assert same(state(tmp_path / "zero", "model."), state(plain(*more), "model."))
    assert summary(tmp_path / "zero")["val"] == summary(plain(*more))["val"]
    for column in ("train/ce", "train/loss"):
        logged = metrics(tmp_path / "zero", column)
        assert len(logged) == 3
        assert logged == metrics(plain(*more), column)


@pytest.mark.slow
def test_chunk_has_its_three_controls(small, plain, tmp_path):
    """No module; injection alone; the loss without injection, whose trunk equals that of no module."""
    runs = {
        "injection": ("objective=chunk", "jepa.weight=0"),
        "loss": ("objective=chunk_loss_only", NOW, "jepa.weight=0.1"),
        "both": ("objective=chunk", NOW, "jepa.weight=0.1"),
    }
    for name, overrides in runs.items():
        train(small(*overrides, run_dir=tmp_path / name))
    none = state(plain(), "model.")
    injected = state(tmp_path / "injection", "model.injector.")
    start = state(tmp_path / "both", "model.injector.")
    assert same(none, state(tmp_path / "loss", "model."))
    assert injected["model.injector.inject.weight"].any()
    trained = [n for n in injected if not torch.equal(injected[n], start[n])]
    assert "model.injector.project_in.weight" in trained  # the loss trains it, injection does not
    trunk = {n: t for n, t in state(tmp_path / "injection", "model.").items() if n in none}
    assert trunk.keys() == none.keys()
    assert not same(trunk, none)


def test_injection_alone_leaves_projector_and_predictor_at_their_start(small, build, tmp_path):
    overrides = ("objective=chunk", "jepa.weight=0")
    train(small(*overrides, run_dir=tmp_path / "run"))
    torch.manual_seed(1337)
    start = build(*overrides, seed=1337).model.injector.state_dict()
    end = state(tmp_path / "run", "model.injector.")
    moved = {n for n in start if not torch.equal(start[n], end[f"model.injector.{n}"])}
    assert moved == {"inject.weight"}


@pytest.mark.slow
def test_the_detached_loss_reaches_the_trunk_through_a_shared_clip_alone(small, plain, tmp_path):
    """As #832 was published: its gradient counts in the clip."""
    clip = "trainer.gradient_clip_val=0.3"
    train(small("objective=chunk_loss_only", NOW, "jepa.weight=10", clip, run_dir=tmp_path / "a"))
    assert not same(state(tmp_path / "a", "model."), state(plain(clip), "model."))


# ---- training


def test_a_zero_start_under_l2_is_refused_unless_frozen(build):
    with pytest.raises(UserError, match=r"output_start=zero: .*1e9"):
        build("objective=patch", ZERO)
    build("objective=patch", ZERO, FROZEN)


def test_what_that_start_would_have_done(build):
    """Planted bug: the published gradient norm of about 1e9."""
    task = build("objective=patch", ZERO, FROZEN)
    for p in task.parameters():
        p.requires_grad_(True)
    auxiliary(task, random_batch()).backward()
    assert task.objective.predictor.down.weight.grad.norm() > 1e6


def test_the_published_frozen_predictor_is_a_constant_loss_without_gradient(small, plain, tmp_path):
    """As #1243's script ran: a loss of 1/D + .01, and the same trunk as objective=none."""
    every = ("jepa.diagnostics.every=2", "trainer.log_every_n_steps=1")
    train(small("objective=patch", ZERO, FROZEN, *every, run_dir=tmp_path / "run"))
    losses = metrics(tmp_path / "run", "jepa/loss")
    assert losses == pytest.approx([1 / 64 + 0.01] * 6, rel=1e-5)
    assert set(metrics(tmp_path / "run", "jepa/trunk_gradient_share")) == {0.0}
    found = summary(tmp_path / "run")
    assert "does not reach the trunk" in found["jepa"]["warnings"][0]
    assert same(state(tmp_path / "run", "model."), state(plain(), "model."))
    assert found["frozen"] == ["objective.predictor.down.weight", "objective.predictor.up.weight"]
