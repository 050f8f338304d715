"""The size that `describe=true` predicts, compared with the sizes of real exports."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jepa_lm.artifact.prediction import PRIORS, draw, predict
from jepa_lm.artifact.writing import compress_model, pack_model
from jepa_lm.commands.describe import artifact
from jepa_lm.model.roles import parameter_roles
from jepa_lm.run import train
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build, resolve
from tests.conftest import FAST_MUON

CODECS = ["zstd", "zlib", "lzma"]
SMALL = "quantization.rules.weights.min_values=1000"
POLICIES = (
    ("int8",),
    ("int6",),
    ("int5",),
    ("int4",),
    ("int4_fp8",),
    ("none",),
    ("int6_large", SMALL),  # with a lower limit on the scales
)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "backbone", ["transformer", pytest.param("mamba2", marks=pytest.mark.slow)]
)
def test_weights_of_the_prior_take_what_was_predicted(small, policy, backbone):
    """The prediction's arithmetic alone, without effects of training: each codec within a few percent."""
    sizes = ("model.dim=128", "model.backbone.layers=2", "data.tokenizer.vocab_size=1024")
    chosen, *more = policy
    overrides = (f"model={backbone}", f"quantization={chosen}", *more, *sizes)
    task = LanguageModelTask(resolve(small(*overrides)))
    rng, roles = np.random.default_rng(1), parameter_roles(task.model)
    for name, p in task.model.named_parameters():
        whole = [draw(name, roles[name], p.shape, rng) for _ in range(1 + p.numel() // (1 << 16))]
        p.data = torch.cat(whole)[: len(p)].view(p.shape) if p.ndim else whole[0]
    meta = {"model": task.config["model"], "data": task.config["data"]}
    (stream,) = compress_model(
        pack_model(task.model, task.formats), meta, streams="single", codecs=CODECS
    )
    predicted = predict(task.model, task.formats, CODECS)
    best = min(stream.sizes.values())
    assert predicted["bytes"] == pytest.approx(best, rel=0.03)
    assert predicted["compressors"]["lzma"] == pytest.approx(stream.sizes["lzma"], rel=0.05)


def test_under_a_floor_the_size_of_the_weights_decides(small):
    """If the lower limit sets every scale, doubled weights take one bit more; without it, none."""
    model = build("model", resolve(small("model.dim=128"))["model"])
    for chosen, bit in (("int6_large", 1.0), ("int6", 0.0)):
        node = resolve(small("model.dim=128", f"quantization={chosen}", SMALL))["quantization"]
        formats = build("quantization", node).assign(model)
        bits = []
        for std in (0.05, 0.1):
            for p in model.parameters():
                p.data.normal_(0, std, generator=torch.Generator().manual_seed(0))
            found = predict(model, formats, ["zstd"], trained=True)
            bits.append(found["formats"]["int6"]["bits_per_value"])
        assert bits[1] - bits[0] == pytest.approx(bit, abs=0.03)


def test_a_sample_of_the_rows_stands_for_all(small, monkeypatch):
    from jepa_lm.artifact import prediction

    task = LanguageModelTask(resolve(small("quantization=int6", "data.tokenizer.vocab_size=8000")))
    few = predict(task.model, task.formats, ["zstd"])["bytes"]
    monkeypatch.setattr(prediction, "DRAWN", 1 << 30)
    all_rows = predict(task.model, task.formats, ["zstd"])["bytes"]
    assert few == pytest.approx(all_rows, rel=0.01)


def test_every_parameter_has_a_prior_and_draws_have_its_shape(small):
    task = LanguageModelTask(resolve(small()))
    roles, rng = parameter_roles(task.model), np.random.default_rng(0)
    assert PRIORS[-1].match == "*"
    for name, p in task.model.named_parameters():
        drawn = draw(name, roles[name], p.shape, rng)
        assert drawn.shape[1:] == p.shape[1:]
        assert drawn.dtype == torch.float32
        assert torch.isfinite(drawn).all()


def test_describe_announces_the_account(small):
    task = LanguageModelTask(resolve(small("quantization=int4")))
    found = artifact(task)
    predicted = predict(task.model, task.formats, list(found["compressors"]))
    assert found["bytes"] == predicted["bytes"] + (found["tokenizer_bytes"] or 0)
    assert found["total"] == found["bytes"] + found["code_bytes"]
    assert found["headroom"] == 16_000_000 - found["total"]
    assert found["formats"].keys() == {"int4", "float16"}
    shipped = sum(p.numel() for p in task.model.parameters())
    assert sum(entry["values"] for entry in found["formats"].values()) == shipped
    json.dumps(found)


def test_a_tokenizer_inside_is_counted_where_it_is_at_hand(
    exported, trained, small, small_text, tmp_path
):
    def said(*overrides: str) -> tuple[str, int | None]:
        task = LanguageModelTask(resolve(small("quantization=int4", *overrides)))
        found, weights = artifact(task), predict(task.model, task.formats, ["brotli"])["bytes"]
        assert found["compressors"]["brotli"] - weights == (found["tokenizer_bytes"] or 0)
        return found["tokenizer"], found["tokenizer_bytes"]

    inside = exported.account["tokenizer_bytes"]
    assert inside > 1000
    assert said() == ("inside", inside)  # prepared for the shared run
    given = f"data.tokenizer.model={trained.folder / 'tokenizer.model'}"
    (tmp_path / "new").mkdir()
    elsewhere = f"paths.cache={tmp_path / 'new'}"
    assert said(given, elsewhere) == ("inside", inside)
    place, unknown = said(elsewhere)
    assert place.startswith("inside, not counted: ")
    assert unknown is None
    assert list((tmp_path / "new").iterdir()) == []
    assert said("data=byte260", "data.path=null", "data.tokenizer.vocab_size=260") == ("inside", 0)
    shards = ("data=fineweb_sp1024", "data.path=null", elsewhere)
    assert said(*shards) == ("beside", 0)


def test_fewer_bits_are_announced_as_fewer_bytes(small):
    sizes = []
    for policy in ("int8", "int6", "int5", "int4"):
        config = resolve(small(f"quantization={policy}"))
        model = build("model", config["model"])
        formats = build("quantization", config["quantization"]).assign(model)
        sizes.append(predict(model, formats, ["zstd"])["bytes"])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.5 * sizes[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("answers_here")
def test_trained_models_are_predicted_within_three_percent_and_gptq_beats_rounding(
    compose, tmp_path
):
    """Real training at the demo's learning rates, on the embedded novels."""
    from jepa_lm.run import export

    run = tmp_path / "run"
    sizes = ("model.dim=96", "model.backbone.heads=3", "model.backbone.kv_heads=1")
    budget = ("trainer.max_steps=300", "sample=false", "trainer.limit_val_batches=2")
    train(compose("train", FAST_MUON, *sizes, *budget, run_dir=run))
    losses = {}
    for policy in ("int8", "int6", "int4", "int4_fp8", "int4_gptq"):
        where = tmp_path / policy
        quick = ("export.codecs=[brotli]", "export.max_tokens=20000")
        chosen = f"quantization={policy}"
        export(compose("export", f"ckpt_path={run}", chosen, *quick, run_dir=where))
        account = json.loads((where / "export.json").read_text())
        assert abs(account["predicted"]["off"]) < 0.03, policy
        losses[policy] = account["round_trip"]["standard"]["bpb_loss"]
    assert losses["int8"] < 0.005
    assert losses["int6"] < 0.02
    assert losses["int4_gptq"] < losses["int4"]
