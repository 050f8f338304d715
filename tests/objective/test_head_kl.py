"""Divergence of next-token laws: the chunked form against the plain formula, and whom it trains."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.model.heads import PolynomialSoftcap, Readout, TanhSoftcap
from jepa_lm.objective import chunked_logits
from jepa_lm.objective.distances import Comparison
from jepa_lm.objective.head_kl import HeadKL, head_kl, head_kl_reference, row_weights
from tests.objective.conftest import NOW, at, random_batch

N, E, V = 37, 6, 11


def side(width: int, softcap, seed: int, *, biased: bool = True) -> Readout:
    draw = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    return Readout(made(N, width), made(V, width), made(V) if biased else None, softcap)


@pytest.mark.parametrize("softcap", [None, TanhSoftcap(cap=3.0), PolynomialSoftcap(cap=3.0)])
@pytest.mark.parametrize("biased", [True, False])
def test_chunks_equal_the_plain_formula(softcap, biased):
    prediction, target = side(E, softcap, 0, biased=biased), side(E + 3, TanhSoftcap(cap=2.0), 1)
    weights = (torch.arange(N) % 3).double()
    inputs = [x for x in prediction[:3] if x is not None]
    plain = head_kl_reference(prediction, target, weights, temperature=1.7)
    found = head_kl(prediction, target, weights, temperature=1.7, chunk_rows=5)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)  # softcaps are float32
    for a, b in zip(
        torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * plain, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_equal_laws_are_no_distance_apart():
    one = side(E, None, 0)
    found = head_kl(one, one, torch.ones(N, dtype=torch.float64), temperature=1.0)
    assert found.item() == pytest.approx(0, abs=1e-12)
    assert not torch.autograd.grad(found, one.features)[0].any()


def test_a_row_counts_if_it_is_in_its_document_and_stands_for_an_answer():
    prediction, rows = torch.zeros(1, 4, 2), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    answers = torch.tensor([[True, False, True, False]])
    for given, want in (
        ({}, [1, 1, 1, 1]),
        ({"rows": rows}, [1, 1, 0, 0]),
        ({"answers": answers}, [1, 0, 1, 0]),
        ({"rows": rows, "answers": answers}, [1, 0, 0, 0]),
    ):
        here = Comparison(None, None, prediction, at(), **given)
        assert row_weights(prediction, here).tolist() == [want]


def test_all_logits_are_never_held(build, monkeypatch):
    """The largest tensor has a chunk of rows, which the distance leaves to the device."""
    model = build("objective=none").model  # 400 tokens, width 64
    monkeypatch.setitem(chunked_logits.CHUNK_ELEMENTS, "cpu", 16 * 400)
    prediction = torch.randn(4, 32, 64).requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            for x in found if isinstance(found, list | tuple) else [found]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return found

    with Watch():
        HeadKL()(
            prediction, prediction.detach() + 1, Comparison(model, model, prediction, at())
        ).backward()
    assert largest == 400 * 64  # the table; all logits would be 128 x 400


HEADS = {
    "tied": (),
    "tied_corrected": ("model/head=tied_corrected",),
    "tied_gelu": ("model/head=tied_gelu",),
    "logit_bias": ("model.logit_bias=true",),
    "untied": ("model/head=untied",),
    "factored": ("model.embedding.factor_dim=16", "model.head.factor_dim=16"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("objective", ["nextlat", "distil_law"])
def test_the_head_is_trained_only_where_the_recipe_says_so(build, head, objective):
    task = (
        build(f"objective={objective}", NOW, "jepa.alignment.detach_tokens=true", *HEADS[head])
        if objective == "nextlat"
        else build(f"objective={objective}", *HEADS[head])
    )
    model, batch = task.model, random_batch()
    _, main = model(batch["inputs"])
    loss = task.objective(model, batch, main, at())
    own = [p for n, p in model.named_parameters() if n.startswith(("head.", "logit_bias"))]
    table = model.embedding.table.weight
    loss.backward()
    if objective == "distil_law":
        assert all(p.grad is not None and p.grad.any() for p in own)
        return
    assert all(p.grad is None for p in own)
    # A tied table still gets the gradient that reaches it as the input of the trunk, and nothing more.
    held = table.grad.clone()
    model.zero_grad()
    _, main = model(batch["inputs"])
    frozen = model.readout(main.final, frozen=True)
    latents = task.objective.compare(model, batch, main, at())
    (pair,) = latents.pairs
    prediction = torch.nn.functional.linear(
        model.head.features(pair.prediction, frozen=True).flatten(0, 1), frozen.weight, frozen.bias
    )
    logits = prediction if frozen.softcap is None else frozen.softcap(prediction)
    teacher = torch.log_softmax(model.logits(pair.target)[..., :].detach().flatten(0, 1), -1)
    kl = (teacher.exp() * (teacher - logits.log_softmax(-1))).sum(-1).mean()
    smooth = torch.nn.functional.smooth_l1_loss(pair.prediction, pair.target.detach())
    (kl + smooth).backward()
    torch.testing.assert_close(held, table.grad, rtol=1e-4, atol=1e-7)
