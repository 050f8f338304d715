"""The moving average of the weights: what it is, that it is what is scored, resumed and exported."""

from __future__ import annotations

import json

import pytest
import torch

from jepa_lm.checkpoint import inference_model, read_checkpoint
from jepa_lm.errors import UserError
from jepa_lm.optim.averages import WeightAverage
from jepa_lm.run import evaluate, export, train

DECAY = "average.decay=0.5"


def test_it_is_the_recurrence_in_float32():
    online = torch.nn.Linear(3, 4)
    average = WeightAverage(online, decay=0.9)
    want = online.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            online.weight += step
        average.update(online)
        want = 0.9 * want + 0.1 * online.weight.detach()
    torch.testing.assert_close(average.model.weight, want)
    assert list(average.parameters()) == []
    assert average.to(torch.bfloat16).model.weight.dtype == torch.float32


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_never_moves_is_refused(small, decay):
    with pytest.raises(UserError, match=r"average\.decay="):
        train(small(f"average.decay={decay}"))


def test_the_average_is_scored_exported_and_resumed(small, compose, tmp_path):
    common = (DECAY, "callbacks.checkpoint.every_n_train_steps=4", "objective=lewm")
    train(small(*common, run_dir=tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val"]["weights"] == "ema"
    assert summary["val"]["raw"]["nll"] != summary["val"]["nll"]
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    state = checkpoint["state_dict"]
    name = "backbone.skip_weights"
    shipped = dict(inference_model(checkpoint).named_parameters())[name]
    assert torch.equal(shipped, state[f"average.model.{name}"])
    assert not torch.equal(shipped, state[f"model.{name}"])

    evaluate(
        compose("eval", f"ckpt_path={tmp_path / 'run'}", "eval.baselines=false", run_dir=tmp_path)
    )
    scored = json.loads((tmp_path / "eval.json").read_text())
    assert scored["nll"] == pytest.approx(summary["val"]["nll"], rel=1e-5)
    export(compose("export", f"ckpt_path={tmp_path / 'run'}", run_dir=tmp_path / "export"))
    assert json.loads((tmp_path / "export" / "export.json").read_text())["weights"] == "ema"

    fourth = tmp_path / "run" / "checkpoints" / "step-4.ckpt"
    train(small(*common, f"ckpt_path={fourth}", run_dir=tmp_path / "rest"))
    again = read_checkpoint(tmp_path / "rest" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(again[n], state[n]) for n in state)


def test_an_average_changes_no_trained_weight(small, trained, tmp_path):
    train(small(DECAY, run_dir=tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    plain = read_checkpoint(trained.checkpoint)["state_dict"]
    assert all(torch.equal(state[n], plain[n]) for n in plain)


def test_resuming_without_it_is_refused_in_one_line(small, trained):
    with pytest.raises(
        UserError, match=r"average.*resume with the objective and average of that run"
    ):
        train(small(DECAY, f"ckpt_path={trained.checkpoint}", "trainer.max_steps=9"))
