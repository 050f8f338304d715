"""The optimizer against torch.optim.Muon and AdamW, and each published variant against its formula."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch

from jepa_lm.optim.groups import complete
from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.optim.newton_schulz import orthogonalise, orthogonalise_reference
from jepa_lm.utils.errors import UserError

SHAPES = [(8, 8), (12, 5), (5, 12), (8, 8), (12, 5)]


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def set_gradients(step: int, *groups: list[torch.nn.Parameter]) -> None:
    for group in groups:
        torch.manual_seed(100 + step)
        for p in group:
            p.grad = torch.randn(p.shape)


@pytest.mark.parametrize(("rows", "cols"), [(8, 8), (16, 5), (5, 16), (64, 33)])
def test_batched_newton_schulz_equals_the_plain_one(rows, cols):
    torch.manual_seed(0)
    stack = torch.randn(4, rows, cols)
    for steps in (1, 3, 5):
        batched = orthogonalise(stack, steps=steps, dtype=torch.float32)
        for i in range(4):
            plain = orthogonalise_reference(stack[i], steps=steps, dtype=torch.float32)
            torch.testing.assert_close(batched[i], plain, rtol=1e-4, atol=1e-5)


def test_five_steps_bring_singular_values_near_one():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        out = orthogonalise(torch.randn(3, 48, 32), steps=5, dtype=dtype).float()
        values = torch.linalg.svdvals(out)
        assert values.min() > 0.3
        assert values.max() < 1.4


def test_a_zero_gradient_gives_a_zero_update():
    assert not orthogonalise(torch.zeros(2, 4, 6), steps=5, dtype=torch.bfloat16).any()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("rows_over_cols", "original"), ("match_adamw", "match_rms_adamw")]
)
def test_muon_equals_torch(nesterov, ours, theirs):
    # torch averages gradients where we sum them: with momentum 0.5 the two momenta differ by a
    # power of two, which orthogonalisation cancels without rounding.
    mine, reference = parameters(), parameters()
    settings = dict(lr=0.02, momentum=0.5, nesterov=nesterov, weight_decay=0.1)
    own = dict(algorithm="muon", name="m", update_scale=ours, ns_dtype="bfloat16")
    optimizer = MuonAdamW([dict(params=mine, **own, **settings)])
    torch_muon = torch.optim.Muon(reference, adjust_lr_fn=theirs, **settings)
    for step in range(4):
        set_gradients(step, mine, reference)
        optimizer.step()
        torch_muon.step()
        for a, b in zip(mine, reference, strict=True):
            # bfloat16 products in batches and one by one may round differently
            torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * 0.02 * (step + 1) * 4)


def test_adamw_equals_torch():
    mine, reference = parameters(), parameters()
    settings = dict(lr=0.01, betas=(0.8, 0.9), eps=0.1, weight_decay=0.2)
    optimizer = MuonAdamW([dict(params=mine, algorithm="adamw", name="a", **settings)])
    torch_adamw = torch.optim.AdamW(reference, **settings)
    for step in range(5):
        set_gradients(step, mine, reference)
        if step == 3:  # a gradient of zeros is a gradient: moments fade and weights decay
            mine[0].grad, reference[0].grad = torch.zeros(8, 8), torch.zeros(8, 8)
        optimizer.step()
        torch_adamw.step()
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("row_normalize", [True, False])
@pytest.mark.parametrize("scale", ["rows_over_cols", "match_adamw", "none"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_variants_equal_the_formula(row_normalize, scale, nesterov):
    mine, reference = parameters(), parameters()
    optimizer = MuonAdamW(
        [
            dict(
                params=mine,
                algorithm="muon",
                name="m",
                lr=0.02,
                momentum=0.9,
                nesterov=nesterov,
                ns_steps=3,
                ns_dtype="float32",
                update_scale=scale,
                row_normalize=row_normalize,
                weight_decay=0.04,
            )
        ]
    )
    momenta = [torch.zeros_like(p) for p in reference]
    for step in range(3):
        set_gradients(step, mine, reference)
        optimizer.step()
        for p, m in zip(reference, momenta, strict=True):
            m.mul_(0.9).add_(p.grad)
            update = p.grad + 0.9 * m if nesterov else m.clone()
            if row_normalize:
                update = update / (update.square().mean(1, keepdim=True) + 1.1920929e-7).sqrt()
            update = orthogonalise_reference(update, steps=3, dtype=torch.float32)
            rows, cols = p.shape
            s = {
                "rows_over_cols": math.sqrt(max(1, rows / cols)),
                "match_adamw": 0.2 * math.sqrt(max(rows, cols)),
                "none": 1.0,
            }[scale]
            p.data = p.data * (1 - 0.02 * 0.04) - 0.02 * s * update
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_parameters_without_gradient_are_left_alone():
    mine = parameters()
    before = [p.detach().clone() for p in mine]
    optimizer = MuonAdamW([dict(params=mine, algorithm="muon", name="m", lr=0.1, weight_decay=0.5)])
    mine[0].grad = torch.randn(8, 8)
    optimizer.step()
    assert not torch.equal(mine[0], before[0])
    for p, b in zip(mine[1:], before[1:], strict=True):
        assert torch.equal(p, b)


def test_state_survives_a_round_trip():
    def build(params):
        return MuonAdamW(
            [
                dict(params=params[:2], algorithm="muon", name="m", lr=0.02),
                dict(params=params[2:], algorithm="adamw", name="a", lr=0.01),
            ]
        )

    first, second = parameters(), parameters()
    a, b = build(first), build(second)
    set_gradients(0, first, second)
    a.step()
    for p, q in zip(second, first, strict=True):
        p.data = q.data.clone()
    b.load_state_dict(copy.deepcopy(a.state_dict()))  # torch would share the tensors
    set_gradients(1, first, second)
    a.step()
    b.step()
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)


def test_a_group_that_says_little_has_the_published_settings():
    """Those of torch.optim.Muon, and the betas of GPT-3."""
    muon, adamw = (complete({"algorithm": a, "lr": 1.0, "params": []}) for a in ("muon", "adamw"))
    published = inspect.signature(torch.optim.Muon).parameters
    for name in ("momentum", "nesterov", "ns_steps"):
        assert muon[name] == published[name].default
    assert adamw["betas"] == (0.9, 0.95)
    assert adamw["eps"] == 1e-8
    assert muon["weight_decay"] == adamw["weight_decay"] == 0


def test_a_loaded_state_leaves_the_settings_of_the_config_alone():
    def build(**settings):
        return MuonAdamW([dict(params=parameters(), algorithm="muon", name="m", **settings)])

    earlier, later = build(lr=0.1, momentum=0.5), build(lr=0.2, weight_decay=0.3, nesterov=False)
    later.load_state_dict(earlier.state_dict())
    (group,) = later.param_groups
    assert {k: group[k] for k in ("lr", "momentum", "weight_decay", "nesterov")} == {
        "lr": 0.2,
        "momentum": 0.95,
        "weight_decay": 0.3,
        "nesterov": False,
    }


def test_moments_are_float32_under_autocast():
    """Master weights and moments never leave float32."""
    model = torch.nn.Linear(4, 4, bias=False)
    other = torch.nn.Parameter(torch.zeros(4))
    optimizer = MuonAdamW(
        [
            dict(params=[model.weight], algorithm="muon", name="m", lr=0.02),
            dict(params=[other], algorithm="adamw", name="a", lr=0.01),
        ]
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ((model(torch.randn(3, 4)) + other) ** 2).mean().backward()
    optimizer.step()
    assert len(optimizer.state) == 2
    for p, state in optimizer.state.items():
        assert p.dtype == torch.float32
        assert all(t.dtype == torch.float32 for t in state.values())


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (dict(algorithm="adam", lr=1.0), "optimizer.groups.x.algorithm=adam"),
        (dict(algorithm="muon", lr=1.0, betas=[0, 1]), "optimizer.groups.x.betas"),
        (dict(algorithm="muon"), "optimizer.groups.x.lr"),
        (dict(algorithm="muon", lr=1.0, ns_dtype="half"), "ns_dtype=half"),
        (dict(algorithm="muon", lr=1.0, update_scale="big"), "update_scale=big"),
    ],
)
def test_wrong_settings_are_named(group, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        MuonAdamW([dict(params=parameters(), name="x", **group)])


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(UserError, match="takes matrices"):
        MuonAdamW(
            [dict(params=[torch.nn.Parameter(torch.zeros(3))], name="x", algorithm="muon", lr=1.0)]
        )


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_newton_schulz_computes_in_what_the_hardware_has(native, dtype, monkeypatch):
    capabilities = {"avx2": True, "avx512_bf16": native}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    group = dict(params=parameters()[:1], algorithm="muon", name="m", lr=0.02)
    assert MuonAdamW([group]).param_groups[0]["ns_dtype"] == dtype
    named = MuonAdamW([group | {"ns_dtype": "bfloat16"}]).param_groups[0]
    assert named["ns_dtype"] == "bfloat16"
