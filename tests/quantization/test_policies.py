"""The ready-made policies: each fits each backbone, and stored weights come back close."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from jepa_lm.quantization.formats import Cast
from jepa_lm.quantization.policy import Policy
from jepa_lm.quantization.qat import stored_copy
from jepa_lm.run import train
from jepa_lm.utils.config import build, check_node, resolve
from jepa_lm.utils.errors import UserError
from tests.conftest import MAMBA2

POLICIES = (
    "none",
    "int8",
    "int6",
    "int5",
    "int4",
    "int4_fp8",
    "int6_quantile",
    "int6_large",
    "int8_large",
    "mixed_int6_int8",
)
OF_THE_TRANSFORMER = ("int6_quantile", "int8_large", "mixed_int6_int8")
HEADS = ("model.backbone.heads=4", "model.backbone.kv_heads=2")
WORST = {"none": 0.0, "int8": 0.01, "int6": 0.04, "int5": 0.08, "int4": 0.2, "int4_fp8": 0.2} | {
    "int6_large": 0.2,  # with a lower limit on the scale, and weights of 0.05
    "int6_quantile": 0.2,
    "mixed_int6_int8": 0.2,
}


def model_and_policy(compose, backbone, policy):
    more = MAMBA2 if backbone == "mamba2" else HEADS
    sizes = ("model.dim=64", "model.vocab_size=400", *more)
    config = resolve(compose("train", f"model={backbone}", *sizes, f"quantization={policy}"))
    check_node("quantization", config["quantization"])
    torch.manual_seed(0)
    model = build("model", config["model"])
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    made = build("quantization", config["quantization"])
    assert isinstance(made, Policy)
    return model, made


@pytest.mark.parametrize("backbone", ["transformer", "mamba2"])
@pytest.mark.parametrize("policy", POLICIES)
def test_weights_come_back_close(compose, backbone, policy):
    if policy in OF_THE_TRANSFORMER and backbone == "mamba2":
        pytest.skip("it names attention")
    model, made = model_and_policy(compose, backbone, policy)
    copied = stored_copy(model, made.assign(model))
    for (name, before), (_, after) in zip(
        model.named_parameters(), copied.named_parameters(), strict=True
    ):
        error = ((after - before).norm() / before.norm()).item()
        assert error <= WORST.get(policy, 0.05), (name, error)
    ids = torch.randint(0, 400, (2, 20))
    assert torch.isfinite(copied(ids)[0]).all()


def test_903_gets_what_it_published(compose):
    """int4 for large matrices, float8 for the other tensors of two dimensions, bfloat16 for the rest."""
    config = resolve(compose("train", "experiment=pr903_lewm_bpe"))
    with torch.device("meta"):
        model = build("model", config["model"])
    formats = build("quantization", config["quantization"]).assign(model)
    names = {n: f.name for n, f in formats.items()}
    two = {n for n, p in model.named_parameters() if p.ndim == 2}
    assert names["embedding.table.weight"] == "float8"
    assert names["backbone.skip_weights"] == "float8"
    assert names["backbone.blocks.0.resid_mix"] == "float8"
    assert names["backbone.blocks.0.mixer.conv1d.weight"] == "bfloat16"
    assert names["backbone.blocks.0.mixer.A_log"] == "bfloat16"
    assert {n for n, f in names.items() if f in ("int4", "float8")} == two
    assert sum(f == "int4" for f in names.values()) == 10 * 2 + 5 * 2 + 2


def test_a_policy_that_does_not_fit_is_refused_before_training(small):
    """Not after hours of training, when export.py would find out."""
    with pytest.raises(
        UserError, match=r"quantization\.rules\.blocks\.match=backbone.*fits no parameter"
    ):
        train(small("model=mamba2", "quantization=mixed_int6_int8"))


HALF_A_FORMAT = SimpleNamespace(name="half", pack=None, fake_quantize=None)
RULE = {"match": ["*"], "min_values": 0, "format": Cast(dtype="float16")}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (None, r"rules\.all=None: a rule has match, min_values, format, ndim"),
        (RULE | {"match": "matrix"}, r"rules\.all\.match=matrix: expected a list"),
        (RULE | {"min_values": "a"}, r"rules\.all\.min_values=a: expected a whole number"),
        (RULE | {"ndim": 1.5}, r"rules\.all\.ndim=1\.5: expected a whole number or null"),
        (RULE | {"format": "int8"}, r"rules\.all\.format=int8: a format of jepa_lm"),
        (RULE | {"format": HALF_A_FORMAT}, r"or one of your own, which must have spec, unpack"),
        (RULE | {"bits": 8}, r"rules\.all\.bits: a rule has no such setting"),
        ({"format": RULE["format"]}, r"rules\.all\.match is not set; a rule has match"),
    ],
)
def test_a_rule_that_is_none_is_named(rule, words):
    with pytest.raises(UserError, match=words):
        Policy(rules={"all": rule})
