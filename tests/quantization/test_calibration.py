"""GPTQ over a model: the inputs that its matrices read, and whether each matrix keeps GPTQ or rounding."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.stream import TokenStream
from jepa_lm.quantization import calibration
from jepa_lm.quantization.calibration import (
    GPTQSettings,
    calibrate,
    input_hessians,
    own_text,
    training_text,
)
from jepa_lm.quantization.formats import unpack_parts
from jepa_lm.quantization.gptq import output_error
from jepa_lm.run import export
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError


def settings(**changes) -> GPTQSettings:
    return GPTQSettings(
        **{"text": "training", "tokens": 256, "damping": 0.01, "act_order": True, "seed": 0}
        | changes
    )


@pytest.fixture
def model(small):
    torch.manual_seed(0)
    task = LanguageModelTask(resolve(small("quantization=int4")))
    for p in task.model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return task.model.eval(), task.formats


def ids(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 400, (rows, 32), generator=torch.Generator().manual_seed(seed))


def test_hessians_are_the_sums_of_what_layers_read():
    """Against products written out for a network whose inner inputs are known."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False))
    batches = [torch.randn(2, 4, 5), torch.randn(1, 4, 5)]
    found, tokens = input_hessians(net, batches, ["0.weight", "2.weight"])
    x = torch.cat([b.reshape(-1, 5) for b in batches])
    inner = (x @ net[0].weight.T).relu()
    torch.testing.assert_close(found["0.weight"], sum(torch.outer(row, row) for row in x))
    torch.testing.assert_close(found["2.weight"], sum(torch.outer(row, row) for row in inner))
    assert tokens == sum(b.numel() for b in batches)
    assert not net[0]._forward_pre_hooks


def test_batches_add_up(model):
    names = ["backbone.blocks.1.mlp.down.weight", "backbone.blocks.0.attention.query.weight"]
    both, _ = input_hessians(model[0], [ids(2), ids(3, seed=1)], names)
    one, _ = input_hessians(model[0], [torch.cat((ids(2), ids(3, seed=1)))], names)
    for name in names:
        torch.testing.assert_close(both[name], one[name], rtol=1e-4, atol=1e-4)


def test_each_matrix_keeps_what_changes_its_outputs_less(model):
    net, formats = model
    parts, report = calibrate(net, formats, [ids(8)], settings())
    assert report["tokens"] == 8 * 32
    assert report["kept_gptq"] > 0.9
    names = [row["name"] for row in report["matrices"]]
    assert set(parts) == set(names)
    assert "embedding.table.weight" not in names
    linears = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    assert len(names) == len(linears)
    hessians, _ = input_hessians(net, [ids(8)], names)
    for row in report["matrices"]:
        name = row["name"]
        weight = net.get_parameter(name).detach()
        kept = unpack_parts(formats[name].spec(), parts[name], weight.shape)
        error = output_error(weight, kept, hessians[name])
        assert error == pytest.approx(min(row["squared_error"].values()), rel=1e-4)
        assert row["kept"] == min(row["squared_error"], key=row["squared_error"].get)


def test_rounding_stays_where_gptq_is_worse(model, monkeypatch):
    """A broken GPTQ that stores zeros must not be kept."""
    net, formats = model

    def broken(weight, hessian, kind, **_):
        _, scale = kind.quantize(weight)
        return torch.zeros_like(weight), scale

    monkeypatch.setattr(calibration, "gptq", broken)
    parts, report = calibrate(net, formats, [ids(4)], settings())
    assert report["kept_gptq"] == 0
    for name, kept in parts.items():
        plain = formats[name].pack(net.get_parameter(name).detach())
        assert all(torch.equal(kept[k], plain[k]) for k in plain)


def test_a_matrix_that_gptq_has_no_solution_for_is_rounded_and_named(model, monkeypatch, capsys):
    net, formats = model
    odd = "backbone.blocks.1.mlp.down.weight"
    hessians = calibration.input_hessians

    def indefinite(*arguments):
        found, tokens = hessians(*arguments)
        found[odd] = -torch.eye(len(found[odd]))
        return found, tokens

    monkeypatch.setattr(calibration, "input_hessians", indefinite)
    parts, report = calibrate(net, formats, [ids(4)], settings())
    assert report["not_factored"] == [odd]
    (row,) = [row for row in report["matrices"] if row["name"] == odd]
    assert row["kept"] == "rounding"
    assert row["squared_error"].keys() == {"rounding"}
    plain = formats[odd].pack(net.get_parameter(odd).detach())
    assert all(torch.equal(parts[odd][k], plain[k]) for k in plain)
    assert report["kept_gptq"] > 0.8
    warning = capsys.readouterr().err
    assert warning.startswith(
        f"warning: GPTQ: 1 of {len(report['matrices'])} matrices are rounded ({odd}"
    )
    assert warning.count("\n") == 1


def test_a_policy_without_integer_matrices_is_refused(small):
    task = LanguageModelTask(resolve(small("quantization=none")))
    with pytest.raises(UserError, match=r"quantization\.gptq: no matrix of this policy"):
        calibrate(task.model, task.formats, [ids(1)], settings())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": "validation"}, "text=validation: expected one of training, own"),
        ({"tokens": 0}, "tokens=0: expected a whole number of at least 1"),
        ({"damping": 0.0}, r"damping=0\.0: expected a number above 0"),
        ({"damping": float("nan")}, "damping=nan: expected a number above 0"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0 to 4294967295"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        settings(**changes)


def test_own_text_is_what_the_model_writes(model):
    net, _ = model
    batches = list(own_text(net, [7], tokens=100, seq_len=32, seed=0))
    assert sum(b.numel() for b in batches) >= 100
    assert all(b.shape[1] == 32 for b in batches)
    again = list(own_text(net, [7], tokens=100, seq_len=32, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    (other,) = own_text(net, [7], tokens=100, seq_len=32, seed=1)
    assert not torch.equal(other, batches[0])
    assert len(torch.unique(batches[0], dim=0)) == len(batches[0])  # rows differ


def test_training_text_is_the_first_training_tokens(tmp_path):
    with ShardWriter(tmp_path / "train.bin") as shard:
        shard.write(range(1000))
    stream = TokenStream([tmp_path / "train.bin"])
    read = training_text(stream, tokens=100, seq_len=32, device=torch.device("cpu"))
    assert torch.cat([b.reshape(-1) for b in read]).tolist() == list(range(100))


@pytest.mark.usefixtures("answers_here")
@pytest.mark.parametrize("text", ["training", "own"])
def test_an_export_with_gptq_reads_no_validation_text(
    trained, compose, tmp_path, monkeypatch, text
):
    """Reading validation tokens raises an error."""
    read = TokenStream.read

    def guarded(self, start, out):
        assert "val" not in self.role, "calibration reads validation text"
        return read(self, start, out)

    monkeypatch.setattr(TokenStream, "read", guarded)
    monkeypatch.setattr(TokenStream, "role", "", raising=False)
    from jepa_lm.data.token_data import TokenData

    setup = TokenData.setup

    def marked(self):
        setup(self)
        self.streams["val"].role = "val"

    monkeypatch.setattr(TokenData, "setup", marked)
    export(
        compose(
            "export",
            f"ckpt_path={trained.folder}",
            "quantization=int4_gptq",
            f"quantization/gptq={text}",
            "quantization.gptq.tokens=500",
            "export.codecs=[zlib]",
            "export.protocols=[]",
        )
    )
    account = json.loads((tmp_path / "run" / "export.json").read_text())
    assert account["gptq"]["text"] == text
    assert account["gptq"]["tokens"] >= 480
    assert account["gptq"]["kept_gptq"] > 0.5
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert "GPTQ on" in card


def test_gptq_of_a_policy_is_a_setting(compose):
    cfg = resolve(compose("train", "quantization=int6_gptq", "quantization.gptq.tokens=10"))
    policy = build("quantization", cfg["quantization"])
    assert policy.gptq.tokens == 10
    added = resolve(compose("train", "quantization=int4_fp8", "+quantization/gptq=own"))
    assert build("quantization", added["quantization"]).gptq.text == "own"
