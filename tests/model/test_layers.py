"""Layers against plain references; no later token changes an earlier logit."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from hydra.utils import instantiate

from jepa_lm.model.embeddings import CantorBigram, TokenEmbedding, XorBigram
from jepa_lm.model.heads import TiedHead, UntiedHead
from jepa_lm.model.layers import (
    CausalSelfAttention,
    RotaryTables,
    SmearGate,
    SquaredReluMLP,
    aligned_product,
    apply_rotary,
    exclude_self,
    rms_norm,
    rotary_angles,
)
from jepa_lm.model.unet import Carry, UNet
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError

CPU = torch.device("cpu")
ROTATED, BASE = 4, 100.0


def attention(**changes) -> CausalSelfAttention:
    settings = dict(
        dim=24,
        heads=4,
        kv_heads=2,
        rotary=RotaryTables(rope_dims=ROTATED, base=BASE, train_length=None),
        q_gain=1.5,
        exclude_self=True,
    )
    return CausalSelfAttention(**(settings | changes))


def attention_reference(layer: CausalSelfAttention, x, extra_value):
    """Position by position, head by head."""
    B, T, _ = x.shape
    d, group = layer.head_dim, layer.heads // layer.kv_heads
    q, k, v = layer.query(x), layer.key(x), layer.value(x) + extra_value
    out = torch.zeros(B, T, layer.heads * d)

    def rotate(vector, t):
        half = ROTATED // 2
        result = vector.clone()
        for i in range(half):
            angle = t * BASE ** (-2 * i / ROTATED)
            a, b = vector[i], vector[half + i]
            result[i] = a * math.cos(angle) + b * math.sin(angle)
            result[half + i] = -a * math.sin(angle) + b * math.cos(angle)
        return result

    for b in range(B):
        for h in range(layer.heads):
            kv = slice((h // group) * d, (h // group + 1) * d)
            for t in range(T):
                query = rotate(rms_norm(q[b, t, h * d : (h + 1) * d]), t) * layer.q_gain[h]
                keys = [rotate(rms_norm(k[b, s, kv]), s) for s in range(t + 1)]
                scores = torch.stack([query @ key for key in keys]) / math.sqrt(d)
                y = torch.softmax(scores, 0) @ v[b, : t + 1, kv]
                if layer.exclude_self:
                    unit = v[b, t, kv] / v[b, t, kv].norm()
                    y = y - (y @ unit) * unit
                out[b, t, h * d : (h + 1) * d] = y
    return layer.out(out)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("xsa", [True, False])
def test_attention_equals_the_loop_over_positions(kv_heads, xsa):
    torch.manual_seed(0)
    layer = attention(kv_heads=kv_heads, exclude_self=xsa)
    x, extra = torch.randn(2, 7, 24), torch.randn(2, 7, kv_heads * 6)
    with torch.no_grad():
        torch.testing.assert_close(
            layer(x, extra), attention_reference(layer, x, extra), rtol=1e-4, atol=1e-5
        )


def test_excluded_output_has_no_part_along_the_own_value():
    torch.manual_seed(0)
    y, v = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 5, 8)
    out = exclude_self(y, v)
    along = (out.view(2, 3, 2, 5, 8) * v[:, :, None]).sum(-1)
    assert along.abs().max() < 1e-5


def test_rotary_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    cos, sin = rotary_angles(12, 8, base=10000.0, train_length=None, device=CPU)
    q, k = torch.randn(8), torch.randn(8)
    rotated = [apply_rotary(x.expand(1, 1, 12, 8), cos, sin)[0, 0] for x in (q, k)]
    scores = rotated[0] @ rotated[1].T
    for offset in range(1, 11):
        diagonal = torch.diagonal(scores, -offset)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), rtol=1e-4, atol=1e-5)


def test_rotary_tables_are_made_once_for_all_copies_and_few_are_kept():
    tables = RotaryTables(rope_dims=8, base=100.0, train_length=16)
    cos, sin = tables(20, CPU)
    wanted = rotary_angles(20, 8, base=100.0, train_length=16, device=CPU)
    assert torch.equal(cos, wanted[0])
    assert torch.equal(sin, wanted[1])
    assert copy.deepcopy(tables)(20, CPU)[0] is cos
    tables.keep(30, CPU)
    kept = tables(30, CPU)[0]
    for length in range(1, 3 * RotaryTables.KEPT):
        tables(length, CPU)
    assert len(tables._tables) <= RotaryTables.KEPT + 1
    assert tables(30, CPU)[0] is kept


def test_a_compiled_pass_keeps_no_tables(monkeypatch):
    """It would be compiled again as soon as there were some."""
    tables = RotaryTables(rope_dims=8, base=100.0, train_length=None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    tables(20, CPU)
    assert not tables._tables


def test_a_product_of_aligned_width_is_the_product():
    torch.manual_seed(0)
    x, weight = (
        torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((2, 3, 8), (70, 8))
    )
    found, wanted = aligned_product(x, weight), x @ weight.T
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        *(torch.autograd.grad(y.square().sum(), (x, weight)) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("overrides", [(), ("model=mamba2",)], ids=["transformer", "mamba2"])
@pytest.mark.parametrize(
    ("residual", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_residual_stream_has_its_dtype_in_mixed_precision_alone(
    small, overrides, residual, dtype
):
    model = LanguageModelTask(resolve(small(*overrides, f"model.residual={residual}"))).model
    ids = torch.randint(400, (2, 16))
    assert model.encode(model.embed(ids)).last.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(model.embed(ids))
    assert encoded.last.dtype == encoded.final.dtype == dtype
    with torch.autocast("cpu", torch.float16):  # in which a sum over blocks could overflow
        assert model.encode(model.embed(ids)).last.dtype == torch.float32
    assert model.double().encode(model.embed(ids)).last.dtype == torch.float64


def test_rotary_base_grows_only_past_the_training_length():
    def angles(positions, length):
        cos, sin = rotary_angles(positions, 16, base=10000.0, train_length=length, device=CPU)
        return torch.atan2(sin, cos)

    torch.testing.assert_close(angles(1024, 1024), angles(1024, None))
    base = 10000.0 * 2 ** (16 / 14)
    want = 3 * base ** (-2 / 16)
    assert angles(2048, 1024)[3, 1].item() == pytest.approx(want, rel=1e-5)


def test_mlp_and_smear_gate_formulas():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    for slope in (0.0, 0.5):
        mlp = SquaredReluMLP(dim=8, hidden=12, negative_slope=slope)
        up = x @ mlp.up.weight.T
        want = torch.where(up > 0, up, slope * up) ** 2 @ mlp.down.weight.T
        torch.testing.assert_close(mlp(x), want)
    gate = SmearGate(dim=8)
    torch.nn.init.normal_(gate.gate)
    g = torch.sigmoid(gate.gate)
    out = gate(x)
    torch.testing.assert_close(out[:, 0], (1 - g) * x[:, 0])
    torch.testing.assert_close(out[:, 3], (1 - g) * x[:, 3] + g * x[:, 2])


def test_bigram_buckets_equal_the_formula():
    ids = torch.randint(0, 1024, (3, 50))
    xor = XorBigram(dim=8, buckets=211, width=4, scale=0.05, zero_projection=False).index(ids)
    cantor = CantorBigram(dim=8, buckets=211, std=0.01).index(ids)
    for b in range(3):
        for t in range(50):
            current, before = int(ids[b, t]), int(ids[b, t - 1]) if t else None
            want = 210 if before is None else ((36313 * current) ^ (27191 * before)) % 210
            assert xor[b, t] == want
            s = current + (before or 0)
            assert cantor[b, t] == (s * (s + 1) // 2 + current) % 211


@pytest.mark.parametrize(("correction", "gelu"), [(False, False), (True, False), (False, True)])
def test_factored_tie_modes(correction, gelu):
    torch.manual_seed(0)
    embedding = TokenEmbedding(vocab_size=11, dim=8, factor_dim=5, std=1.0)
    head = TiedHead(dim=8, vocab_size=11, factor_dim=5, correction=correction, gelu=gelu)
    if correction:
        torch.nn.init.normal_(head.correction)
    hidden = torch.randn(2, 3, 8)
    reduced = hidden @ head.reduce.weight.T
    if gelu:
        reduced = 0.5 * reduced * (1 + torch.erf(reduced / math.sqrt(2)))
    table = embedding.table.weight + (head.correction if correction else 0)
    torch.testing.assert_close(head(hidden, embedding.table.weight), reduced @ table.T)
    ids = torch.tensor([[3, 4]])
    want = embedding.table.weight[ids] @ embedding.expand.weight.T
    torch.testing.assert_close(embedding(ids), want)


def test_untied_head_ignores_the_table():
    head = UntiedHead(dim=8, vocab_size=11, zero_init=False)
    hidden = torch.randn(2, 3, 8)
    torch.testing.assert_close(head(hidden, torch.zeros(11, 8)), hidden @ head.out.weight.T)


@pytest.mark.parametrize("layers", [1, 2, 5, 6])
def test_unet_adds_early_outputs_late(layers):
    class Block(torch.nn.Module):
        def __init__(self, i):
            super().__init__()
            self.i = i

        def forward(self, x, x0, extra):
            return x * 1.5 + (self.i + 1) * x0

    net = UNet(blocks=[Block(i) for i in range(layers)], dim=3)
    torch.nn.init.normal_(net.skip_weights)
    x0 = torch.randn(2, 4, 3)
    x, outputs = x0, []
    for i in range(layers):
        j = i - layers // 2
        if j >= 0 and j < layers // 2:
            x = x + net.skip_weights[j] * outputs[layers // 2 - 1 - j]
        x = x * 1.5 + (i + 1) * x0
        outputs.append(x)
    whole = net(Carry(0, x0, x0, (), {}), {}, until=layers, taps=(0, layers - 1))
    torch.testing.assert_close(whole.x, x)
    torch.testing.assert_close(whole.taps[0], outputs[0])
    assert whole.taps.keys() == {0, layers - 1}
    for cut in range(layers + 1):
        half = net(Carry(0, x0, x0, (), {}), {}, until=cut)
        torch.testing.assert_close(net(half.detach(), {}, until=layers).x, x)


ALL_ON = [
    "data=bytes256",
    "model.dim=32",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=2",
    "model.backbone.rope_dims=4",
    "model/value_embedding=shared",
    "model.logit_bias=true",
]


def randomised(config) -> torch.nn.Module:
    """Give values to a model's zero-started tensors, so that every path matters."""
    torch.manual_seed(0)
    model = instantiate(config["model"]).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize(
    "switch",
    [
        [],
        ["model/bigram=cantor"],
        ["model/head=untied", "model/softcap=polynomial"],
        ["model.embedding.factor_dim=8", "model/head=tied_corrected"],
        ["model.embedding.factor_dim=8", "model/head=tied_gelu", "~model/softcap"],
    ],
)
def test_a_later_token_changes_no_earlier_logit(compose, switch):
    model = randomised(resolve(compose("train", *ALL_ON, *switch)))
    ids = torch.randint(0, 256, (2, 12))
    for training in (True, False):
        model.train(training)
        before, _ = model(ids)
        for t in range(12):
            changed = ids.clone()
            changed[:, t] = (changed[:, t] + 7) % 256
            after, _ = model(changed)
            assert torch.equal(before[:, :t], after[:, :t])
            assert not torch.allclose(before[:, t], after[:, t])


@pytest.mark.parametrize(
    "switch",
    [
        "model.backbone.q_gain=2.0",
        "model.backbone.rope_dims=8",
        "model.backbone.rope_base=100",
        "model.backbone.rope_train_length=4",
        "model.backbone.xsa_last=0",
        "model.backbone.ln_scale=false",
        "model.backbone.resid_mix=false",
        "model.backbone.mlp_negative_slope=0",
        "model.smear_gate=false",
        "model.logit_bias=false",
        "~model/bigram",
        "~model/value_embedding",
        "~model/softcap",
    ],
)
def test_every_switch_changes_the_model(compose, switch):
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))

    def logits(*overrides):
        torch.manual_seed(0)
        model = instantiate(resolve(compose("train", *ALL_ON, *overrides))["model"])
        for name, p in model.named_parameters():
            if "q_gain" not in name:  # its start is what one of the switches sets
                generator = torch.Generator().manual_seed(sum(map(ord, name)))
                p.data = torch.randn(p.shape, generator=generator) * 0.3
        return model(ids)[0]

    assert not torch.allclose(logits(), logits(switch), atol=1e-4)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.backbone.heads=5", "model.backbone.heads=5"),
        ("model.backbone.kv_heads=3", "model.backbone.kv_heads=3"),
        ("model.backbone.layers=0 ~model/value_embedding", "model.backbone.layers=0"),
        ("model.backbone.rope_dims=99", "model.backbone.rope_dims=99"),
        ("model.backbone.xsa_last=9", "model.backbone.xsa_last=9"),
        ("model.value_embedding.layers=[7]", "layer 7 does not exist"),
    ],
)
def test_an_impossible_shape_is_named(compose, override, key):
    config = resolve(compose("train", *ALL_ON, *override.split()))
    with pytest.raises(UserError, match=re.escape(key)):
        build("model", config["model"])


def test_rms_norm_keeps_its_eps_in_bfloat16():
    tiny = torch.full((4,), 1e-4, dtype=torch.bfloat16)
    want = tiny.float() / torch.sqrt(tiny.float().square().mean() + 1.1920929e-7)
    torch.testing.assert_close(rms_norm(tiny).float(), want, rtol=2e-2, atol=0)
