"""describe=true, and the FLOPs that it and the summary report."""

from __future__ import annotations

import json

import pytest
from hydra.utils import instantiate

from jepa_lm.model.unet import UNet
from jepa_lm.run import train
from jepa_lm.training import summary as summary_of_run
from jepa_lm.training.flops import flops_per_token, micro_batch_rows, model_flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from tests.extension.gated_linear_attention import GatedLinearAttention
from tests.extension.info_nce import InfoNCE


def test_describe_trains_nothing_and_prints_json_only(small, capsys, tmp_path):
    assert train(small("describe=true", "optimizer.freeze=[model.bigram.*]")) is None
    described = json.loads(capsys.readouterr().out)
    assert described["tokens_per_step"] == 256
    assert described["parameters"]["training_only"] == 0
    assert "model.bigram.scale" in described["optimizer"]["frozen"]
    assert described["schedules"]["lr"][0] == {"constant": 1.0, "until": 0.5}
    listed = [n for g in described["optimizer"]["groups"].values() for n in g["parameters"]]
    assert len(listed) == len(set(listed))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_every_schedule_of_a_run_is_described(small, capsys):
    ramp = "{_target_: jepa_lm.schedules.factors.Ramp, steps: 100}"
    of_jepa = ("schedule", "ce_schedule", "regularizers.covariance.schedule")
    of_tokens = ("schedule", "schedules")
    words = [f"++jepa.{key}={ramp}" for key in of_jepa] + [f"tokens.schedule={ramp}"]
    train(small("describe=true", "objective=vicreg", "tokens=mtp", *words))
    found = json.loads(capsys.readouterr().out)["schedules"]
    mine = {key for key in found if key.startswith(("jepa.", "tokens."))}
    assert {key.partition("[")[0] for key in mine} == {
        *(f"jepa.{key}" for key in (*of_jepa, "target.momentum")),  # the recipe's own
        *(f"tokens.{key}" for key in of_tokens),
    }
    assert found["jepa.ce_schedule"] == found["tokens.schedule"]


def test_flops_count_matrices_and_attention(small):
    model = instantiate(resolve(small())["model"])
    D, T, V, L = 64, 32, 400, 3
    weights_ = L * (D * D * 2 + 2 * D * D // 2 + 2 * 3 * D * D) + V * D + 64 * D
    assert model_flops_per_token(model, T) == 6 * weights_ + 3 * L * 2 * T * D


def test_flops_of_mamba2_count_matrices_and_the_scan(compose):
    sizes = ("model.dim=64", "model.vocab_size=400", "model.embedding.factor_dim=32")
    config = resolve(compose("train", "model=mamba2", "model.backbone.layers=3", *sizes))
    D, N, V, L = 64, 64, 400, 3
    mixers = L * (D * (2 * D + 2 * N + 1) + D * D)
    weights_ = mixers + 2 * (2 * 4 * D * D) + V * 32 + 2 * 32 * D
    scan = L * (2 * 32 * (N + D) + 4 * D * N)  # a chunk is as long as the sequence of 32
    products = 6 * weights_ + 3 * scan
    found = model_flops_per_token(instantiate(config["model"]), 32)
    assert products < found < 1.01 * products  # the convolution, and passing states on


def test_flops_see_the_recurrence_of_a_backbone_from_elsewhere(small):
    """Gated linear attention multiplies queries by keys and the result by values, over all positions."""
    D, L = 64, 3
    model = instantiate(resolve(small())["model"])
    model.backbone = GatedLinearAttention(dim=D, layers=L, heads=2)
    longer = model_flops_per_token(model, 64) - model_flops_per_token(model, 32)
    assert longer == 3 * L * 2 * 2 * D * 32


def test_a_run_keeps_its_record_if_its_flops_cannot_be_counted(
    small, counted, monkeypatch, tmp_path, capsys
):
    """A backbone from elsewhere may read a value or name a device, which the meta device cannot follow."""
    forward = UNet.forward

    def reads(self, carry, *args, **kwargs):
        assert carry.x.sum().item() == carry.x.sum().item()
        return forward(self, carry, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", reads)
    monkeypatch.setattr(summary_of_run, "flops_of_run", counted)
    train(small("trainer.max_steps=1", "model.backbone.layers=2"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["flops_per_token"] == {}
    assert capsys.readouterr().err.count("FLOPs are not counted") == 1


def test_frozen_weights_cost_no_gradient_of_their_own(small):
    frozen = "optimizer.freeze=[model.backbone.blocks.0.mlp.up.weight]"
    found = [
        flops_per_token(LanguageModelTask(resolve(small(*words))))["model"]
        for words in ((), (frozen,))
    ]
    assert found[0] - found[1] == 2 * 64 * 3 * 64


def test_flops_of_a_loss_that_compares_rows_are_those_of_the_micro_batch(small):
    """InfoNCE holds each prediction against the targets of all rows."""
    found = []
    for rows in (2, 8):
        sizes = (f"data.batch_tokens={2 * rows * 32}", "trainer.accumulate_grad_batches=2")
        task = LanguageModelTask(resolve(small("objective=patch", *sizes, f"jepa.weight=0.{rows}")))
        assert micro_batch_rows(task) == rows
        task.objective.distance = InfoNCE(temperature=0.1)
        found.append(flops_per_token(task)["objective"])
    pairs, D, T = 3, 64, 32  # a row has four patches of 8, three of which predict the next one
    each = 2 * pairs**2 * D / T  # a product of all predictions with all targets, per row and token
    assert found[1] - found[0] == 2 * each * (8 - 2)  # forward, and backward to the predictions


@pytest.mark.parametrize(
    ("devices", "rows"), [("4", 2), ("auto", 8), ("-1", 8), ("'2'", 4), ("[0,1]", 4)]
)
def test_rows_of_a_micro_batch_follow_the_devices(small, devices, rows):
    config = resolve(small(f"trainer.devices={devices}", "trainer.num_nodes=1"))
    assert micro_batch_rows(LanguageModelTask(config)) == rows
