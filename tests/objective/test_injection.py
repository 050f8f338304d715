"""Latents that are injected into the model, and what ships with it."""

from __future__ import annotations

import json

import pytest
import torch

from jepa_lm.run import export, train
from tests.conftest import Compose
from tests.objective.conftest import (
    noise,
    random_batch,
)
from tests.runs import state


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("length", [32, 29])
def test_injection_is_causal(build, training, length):
    task = build("objective=chunk")
    noise(task)
    model = task.model.train(training)
    ids = random_batch(length=length)["inputs"]
    before = model(ids)[0]
    for position in (1, 8, 15, 16, 27):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 7) % 400
        after = model(changed)[0]
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=0)
        assert not torch.equal(after[:, position], before[:, position])


def test_an_injection_of_the_own_chunk_would_leak(build):
    """Planted bug: the zhat of a chunk is computed from that chunk's latent."""
    task = build("objective=chunk")
    noise(task)
    model = task.model
    injector = model.injector
    forward = injector.forward

    def leaky(hidden):
        injected = forward(hidden)
        addition = injector.inject(injected.latents).repeat_interleave(injector.chunk, 1)
        return injected._replace(addition=addition)

    injector.forward = leaky
    ids = random_batch()["inputs"]
    before = model(ids)[0]
    changed = ids.clone()
    changed[:, 15] = (changed[:, 15] + 7) % 400
    assert not torch.equal(model(changed)[0][:, :15], before[:, :15])


def test_a_tail_shorter_than_a_chunk_gets_nothing(build):
    task = build("objective=chunk")
    noise(task)
    injected = task.model.encode(task.model.embed(random_batch(length=29)["inputs"])).injected
    assert injected.addition[:, :24].any(-1).all()
    assert not injected.addition[:, 24:].any()


# ---- what a run reports


@pytest.mark.usefixtures("answers_here")
@pytest.mark.parametrize("name", ["vicreg", "chunk"])
def test_an_artifact_holds_what_inference_needs_and_nothing_else(
    small, compose: Compose, tmp_path, name
):
    train(small(f"objective={name}", run_dir=tmp_path / "run"))
    export(compose("export", f"ckpt_path={tmp_path / 'run'}", run_dir=tmp_path / "export"))
    tensors = {
        t["name"] for t in json.loads((tmp_path / "export" / "export.json").read_text())["tensors"]
    }
    want = {n.removeprefix("model.") for n in state(tmp_path / "run", "model.")}
    assert tensors == want
    assert any(n.startswith("injector.") for n in tensors) == (name == "chunk")


# ---- the reach table
