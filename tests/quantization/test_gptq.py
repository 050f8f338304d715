"""GPTQ against its definition, brute force and plain rounding."""

from __future__ import annotations

import itertools

import pytest
import torch

from jepa_lm.quantization.formats import Integer
from jepa_lm.quantization.gptq import NotPositiveDefiniteError, gptq, output_error


def integer(bits=4, group=None) -> Integer:
    return Integer(bits=bits, group=group, clip=1.0, scale_dtype="float16")


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix and the Hessian of correlated inputs, some of them large."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=draw) / columns**0.5
    inputs = torch.randn(4 * columns + 8, columns, generator=draw) @ (mixing + torch.eye(columns))
    inputs *= torch.linspace(0.2, 3, columns)[torch.randperm(columns, generator=draw)]
    return torch.randn(rows, columns, generator=draw), inputs.T @ inputs


def stored(kind: Integer, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    C = q.shape[1]
    return q * scale.float().expand(-1, -1, kind.group or C).flatten(1)[:, :C]


def reference(weight, hessian, kind, damping, act_order):
    """Column by column, with the inverse of the remaining Hessian recomputed each time."""
    C = weight.shape[1]
    _, scale = kind.quantize(weight)
    spread = stored(kind, torch.ones_like(weight), scale).double()
    H = hessian.double() + damping * hessian.diagonal().double().mean() * torch.eye(C).double()
    left, q = weight.double().clone(), torch.zeros_like(weight).double()
    todo = list(range(C))
    if act_order:
        todo = torch.argsort(H.diagonal(), descending=True, stable=True).tolist()
    while todo:
        j = todo[0]
        inverse = torch.linalg.inv(H[todo][:, todo])
        q[:, j] = (left[:, j] / spread[:, j]).round().clamp(-kind.limit, kind.limit)
        error = (left[:, j] - q[:, j] * spread[:, j]) / inverse[0, 0]
        left[:, todo] -= error[:, None] * inverse[0]
        todo = todo[1:]
    return q.float()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("group", "block"), [(None, 128), (None, 5), (8, 7)])
def test_the_factored_form_is_the_plain_one(act_order, group, block):
    kind = integer(group=group)
    weight, hessian = problem(9, 37)
    q, _ = gptq(weight, hessian, kind, damping=0.01, act_order=act_order, block=block)
    assert torch.equal(q, reference(weight, hessian, kind, 0.01, act_order))


def test_independent_inputs_leave_nothing_to_make_up_for():
    kind, (weight, _) = integer(), problem(6, 20)
    q, scale = gptq(weight, torch.diag(torch.rand(20) + 0.1), kind, damping=0.0, act_order=True)
    rounded, same = kind.quantize(weight)
    assert torch.equal(q, rounded[:, 0])
    assert torch.equal(scale, same)


def test_it_comes_close_to_the_best_of_all_integers():
    """Brute force over 3-bit integers of four columns; rounding to the nearest is far behind."""
    kind = integer(bits=3)
    best, ours, nearest = 0.0, 0.0, 0.0
    choices = torch.tensor(list(itertools.product(range(-3, 4), repeat=4)), dtype=torch.float32)
    for seed in range(30):
        weight, hessian = problem(1, 4, seed)
        q, scale = gptq(weight, hessian, kind, damping=0.0, act_order=True)
        best += min(output_error(weight, c[None] * scale[0, 0].float(), hessian) for c in choices)
        ours += output_error(weight, stored(kind, q, scale), hessian)
        nearest += output_error(weight, kind.fake_quantize(weight), hessian)
    assert best <= ours < nearest
    assert ours - best < 0.5 * (nearest - best)


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("group", [None, 16])
def test_outputs_are_closer_than_with_plain_rounding(bits, group):
    kind, (weight, hessian) = integer(bits, group), problem(40, 96)
    q, scale = gptq(weight, hessian, kind, damping=0.01, act_order=True)
    assert q.abs().max() <= kind.limit
    ours = output_error(weight, stored(kind, q, scale), hessian)
    assert ours < 0.8 * output_error(weight, kind.fake_quantize(weight), hessian)


def test_inputs_that_were_never_seen_do_no_harm():
    kind, (weight, hessian) = integer(), problem(5, 12)
    hessian[3], hessian[:, 3] = 0.0, 0.0
    q, _ = gptq(weight, hessian, kind, damping=0.01, act_order=True)
    assert torch.isfinite(q).all()
    assert torch.equal(q[:, 3], kind.quantize(weight)[0][:, 0, 3])
    silent, _ = gptq(weight, torch.zeros(12, 12), kind, damping=0.01, act_order=True)
    assert torch.equal(silent, kind.quantize(weight)[0][:, 0])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_inputs_without_a_positive_definite_matrix_are_said(value):
    weight, hessian = problem(5, 12)
    hessian[4, 4] = value
    with pytest.raises(NotPositiveDefiniteError):
        gptq(weight, hessian - 50 * torch.eye(12), integer(), damping=1e-6, act_order=True)


def test_more_damping_is_tried_before():
    """Rounding errors of long sums leave a matrix slightly indefinite."""
    kind, (weight, hessian) = integer(), problem(20, 12)
    least = torch.linalg.eigvalsh(hessian)[0]
    hessian -= (least + 0.05 * hessian.diagonal().mean()) * torch.eye(12)
    q, scale = gptq(weight, hessian, kind, damping=0.01, act_order=True)
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(12)
    assert torch.equal(q, gptq(weight, damped, kind, damping=1e-9, act_order=True)[0])
    assert torch.equal(scale, kind.quantize(weight)[1])
