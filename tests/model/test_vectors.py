"""The published systems' cross entropy at a fixed fill of every parameter, through our YAML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from jepa_lm.config import resolve
from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.model.heads import PolynomialSoftcap

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "transformer.json").read_text())
SIZES = [
    "data=bytes256",
    "model.vocab_size=64",
    "model.dim=32",
    "model.backbone.layers=5",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=2",
]
XOR = ["model.bigram.buckets=128", "model.bigram.width=8", "model.backbone.rope_dims=4"]
PLAIN = [
    "model.smear_gate=false",
    "model.backbone.xsa_last=0",
    "model.backbone.rope_dims=0",
    "model.backbone.ln_scale=false",
]
SYSTEMS = {
    "chunk_832": [*XOR, "model.backbone.mlp_multiple=2"],
    "patch_1243": [*XOR, "model/value_embedding=shared", "model.value_embedding.width=8"],
    "span_1581": [*PLAIN, "model/bigram=cantor", "model.bigram.buckets=128"],
    "prefix_1196": [
        *PLAIN,
        "~model/bigram",
        "model.backbone.mlp_multiple=2",
        "model.backbone.mlp_negative_slope=0",
    ],
}


def fill(model: torch.nn.Module) -> None:
    """The rule of the vectors: it looks at shapes only, so names and layout do not matter."""
    for p in model.parameters():
        if p.ndim == 0:
            p.data.fill_(0.5)
        elif p.ndim == 1:
            p.data = 1 + 0.1 * torch.sin(0.53 * torch.arange(len(p), dtype=torch.float32))
        else:
            i = torch.arange(p.shape[0], dtype=torch.float32)[:, None]
            j = torch.arange(p.shape[1], dtype=torch.float32)[None]
            p.data = 0.1 * torch.sin(0.37 * i + 0.61 * j + (0.1 * i) * j)


def tokens() -> torch.Tensor:
    t, b = torch.arange(33)[None], torch.arange(3)[:, None]
    return (7 * t * t + 3 * t + 11 * b * t + 5 * b) % 64


def statistics(x: torch.Tensor) -> dict:
    flat = x.flatten()
    return {
        "mean": x.mean().item(),
        "std": x.std(unbiased=False).item(),
        "first4": flat[:4].tolist(),
        "last4": flat[-4:].tolist(),
    }


@pytest.fixture
def system(compose):
    def build(name: str) -> LanguageModel:
        config = resolve(compose("train", *SIZES, *SYSTEMS[name]))
        model = instantiate(config["model"])
        fill(model)
        return model

    return build


@pytest.mark.parametrize("name", SYSTEMS)
def test_cross_entropy_of_published_system(system, name):
    expected = VECTORS["systems"][name]["expected"]
    ids = tokens()
    with torch.no_grad():
        logits, encoded = system(name)(ids[:, :-1])
    ce = token_nll(logits, ids[:, 1:]).mean().item()
    want = expected.get("ce_without_jepa_modules", expected.get("ce"))
    assert ce == pytest.approx(want, rel=1e-4)
    if "hidden" in expected:
        got, want = statistics(encoded.final), expected["hidden"]
        for key in want:
            assert got[key] == pytest.approx(want[key], rel=1e-3, abs=1e-5)
    if "logits" in expected:
        got, want = statistics(logits), expected["logits"]
        for key in want:
            assert got[key] == pytest.approx(want[key], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("chunk_832", "model.backbone.xsa_last=0"),
        ("chunk_832", "model.smear_gate=false"),
        ("patch_1243", "model.backbone.rope_dims=0"),
        ("patch_1243", "model.value_embedding.layers=[0,1]"),
        ("span_1581", "model.backbone.ln_scale=true"),
        ("prefix_1196", "model.backbone.mlp_negative_slope=0.5"),
    ],
)
def test_a_wrong_switch_misses_the_vector(compose, name, wrong):
    config = resolve(compose("train", *SIZES, *SYSTEMS[name], wrong))
    model = instantiate(config["model"])
    fill(model)
    ids = tokens()
    with torch.no_grad():
        ce = token_nll(model(ids[:, :-1])[0], ids[:, 1:]).mean().item()
    expected = VECTORS["systems"][name]["expected"]
    want = expected.get("ce_without_jepa_modules", expected.get("ce"))
    assert ce != pytest.approx(want, rel=1e-4)


def test_polynomial_softcap_has_the_published_values():
    table = VECTORS["poly_softcap_15"]
    got = PolynomialSoftcap(cap=15.0)(torch.tensor(table["z"]))
    torch.testing.assert_close(got, torch.tensor(table["value"]), rtol=1e-5, atol=1e-6)
