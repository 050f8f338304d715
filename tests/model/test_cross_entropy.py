"""Chunked cross entropy against the plain formula: values, gradients, types, memory, compilers."""

from __future__ import annotations

import math
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jepa_lm.model import cross_entropy, cross_entropy_kernels, token_nll, z_loss
from jepa_lm.model.cross_entropy import chunked_cross_entropy, cross_entropy_reference
from jepa_lm.model.heads import PolynomialSoftcap, TanhSoftcap
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from tests.conftest import needs

N, V, E, CHUNK = 21, 37, 8, 8
CAPS = {"tanh": TanhSoftcap(cap=3.0), "polynomial": PolynomialSoftcap(cap=3.0), "none": None}
WEIGHT = 0.05
every_cap = pytest.mark.parametrize("cap", CAPS.values(), ids=CAPS)
with_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
with_z = pytest.mark.parametrize("weight", [WEIGHT, 0.0], ids=["z-loss", "no-z-loss"])

INDUCTOR = (
    pytest.mark.slow,
    needs(shutil.which("g++"), "a C++ compiler, for inductor"),
)


@pytest.fixture(
    autouse=True, params=["in place", pytest.param("functional", marks=pytest.mark.slow)]
)
def form(request, monkeypatch):
    """Chunks in place, of several blocks, the last one shorter; and as on a GPU."""
    monkeypatch.setattr(cross_entropy_kernels, "BLOCK_ELEMENTS", 3 * V)
    if request.param == "functional":
        monkeypatch.setattr(cross_entropy, "_in_place", lambda x: False)


def inputs(bias: bool = True, dtype=torch.float32, rows: int = N, scale: float = 1.0) -> list:
    """Features, table, bias and targets, which include the first and the last token."""
    torch.manual_seed(0)
    features = (scale * torch.randn(rows, E, dtype=dtype)).requires_grad_()
    table = torch.randn(V, E, dtype=dtype).requires_grad_()
    offset = torch.randn(V, dtype=dtype).requires_grad_() if bias else None
    targets = torch.randint(0, V, (rows,))
    targets[0], targets[-1], targets[1] = 0, 0, V - 1
    return [features, table, offset, targets]


def both(tensors: list, cap, *, autocast=None, weight: float = WEIGHT, scale: float = 1.0):
    """Return (loss, ce, z) and gradients, chunked and by the formula."""
    features, table, bias, targets = tensors
    leaves = [t for t in (features, table, bias) if t is not None]
    found = []
    for function, rows in (
        (chunked_cross_entropy, {"chunk_rows": CHUNK}),
        (cross_entropy_reference, {}),
    ):
        context = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
        with context:
            values = function(features, table, bias, cap, targets, z_loss_weight=weight, **rows)
        gradients = torch.autograd.grad(scale * values.loss, leaves)
        found.append((torch.stack(tuple(values)).detach(), gradients))
    return found


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("cap", [15.0, 30.0, 59.0, 61.0, 1e4])
@pytest.mark.parametrize("softcap", [TanhSoftcap, PolynomialSoftcap])
@with_z
def test_logits_at_the_cap_and_caps_beyond_float32(softcap, cap, weight):
    """float32 holds exp(88) but not exp(89); caps on both sides are tested."""
    got, plain = both(inputs(scale=cap / 2), softcap(cap=cap), weight=weight)
    assert torch.isfinite(got[0]).all()
    assert relative(got[0], plain[0]) < 1e-5
    for mine, theirs in zip(got[1], plain[1], strict=True):
        assert relative(mine, theirs) < 1e-4


class Seen(TorchDispatchMode):
    """Records the largest tensor that any operation makes, and how often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.calls = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return out

    @property
    def products(self) -> int:
        return sum(self.calls.get(name, 0) for name in ("mm", "addmm", "addmm_"))


@every_cap
@with_bias
@with_z
def test_chunks_agree_with_the_formula(cap, bias, weight):
    (got, gradients), (wanted, expected) = both(inputs(bias), cap, weight=weight)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert relative(ours, theirs) < 1e-5


@every_cap
@with_bias
@with_z
def test_the_gradient_is_that_of_the_loss(cap, bias, weight):
    words = 13  # a gradient check takes two passes for each number of the input
    features, table, offset, targets = inputs(bias, torch.float64, rows=11)
    table, offset = (
        None if t is None else t.detach()[:words].requires_grad_() for t in (table, offset)
    )
    targets = targets % words

    def loss(*leaves):
        return chunked_cross_entropy(
            *leaves, *([] if bias else [None]), cap, targets, z_loss_weight=weight, chunk_rows=CHUNK
        ).loss

    leaves = [t for t in (features, table, offset) if t is not None]
    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_cap
@with_bias
def test_autocast_rounds_where_the_formula_does(dtype, cap, bias):
    """The logits come from the low-precision product; a float32 product would fail."""
    tensors = inputs(bias)
    (got, gradients), (wanted, expected) = both(tensors, cap, autocast=dtype)
    (exact, _), _ = both(tensors, cap)
    torch.testing.assert_close(got, wanted, rtol=2e-6, atol=0)
    assert relative(exact, wanted) > 1e-5
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert relative(ours, theirs) < 3 * torch.finfo(dtype).eps


def test_autocast_sums_the_table_gradient_in_float32():
    """Many chunks: each product is rounded, but their sum is not, so more rows do not add error."""
    features, table, _, targets = inputs(rows=64 * CHUNK)
    context = torch.autocast("cpu", torch.bfloat16)
    with context:
        loss = chunked_cross_entropy(
            features, table, None, None, targets, z_loss_weight=0.0, chunk_rows=CHUNK
        ).loss
    (got,) = torch.autograd.grad(loss, table)
    low = [t.detach().bfloat16() for t in (features, table)]
    p = (low[0] @ low[1].T).float().softmax(-1)
    p[torch.arange(len(p)), targets] -= 1
    exact = p.bfloat16().double().T @ low[0].double() / len(p)
    assert relative(got, exact) < 2**-9


def test_float16_keeps_gradients_that_a_loss_scale_would_keep():
    """Before scaling, a gradient of 1 / N softmax lies below float16's range."""
    features, table, _, targets = inputs(rows=4096)
    features = (1e-3 * features.detach()).requires_grad_()
    tensors = [features, table, None, targets]
    (_, gradients), (_, expected) = both(tensors, None, autocast=torch.float16, scale=2.0**16)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert relative(ours, theirs) < 5e-3


@every_cap
def test_no_tensor_is_as_large_as_all_logits(cap):
    arguments = (*inputs()[:3], cap, inputs()[3])
    with Seen() as chunked:
        chunked_cross_entropy(*arguments, z_loss_weight=WEIGHT, chunk_rows=CHUNK).loss.backward()
    with Seen() as plain:
        cross_entropy_reference(*arguments, z_loss_weight=WEIGHT).loss.backward()
    assert chunked.largest <= max(CHUNK * V, V * E)
    assert plain.largest >= N * V > max(CHUNK * V, V * E)


def test_nothing_waits_for_the_host():
    reads = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"}
    with Seen() as seen:
        out = chunked_cross_entropy(
            *inputs()[:3], CAPS["tanh"], inputs()[3], z_loss_weight=WEIGHT, chunk_rows=CHUNK
        )
        out.loss.backward()
    assert not reads & set(seen.calls)
    with seen:
        out.ce.item()
    assert reads & set(seen.calls)


@pytest.mark.parametrize(
    ("frozen", "products"), [((), 3), ((0,), 2), ((1,), 2), ((0, 1), 1), ((0, 1, 2), 1)]
)
def test_a_gradient_that_nobody_wants_is_not_computed(frozen, products):
    *leaves, targets = inputs()
    for i in frozen:
        leaves[i].requires_grad_(False)
    with Seen() as seen:
        loss = chunked_cross_entropy(
            *leaves, None, targets, z_loss_weight=0.0, chunk_rows=CHUNK
        ).loss
    assert seen.products == products * math.ceil(N / CHUNK)
    assert loss.requires_grad == (len(frozen) < 3)
    if loss.requires_grad:
        loss.backward()
    assert [leaf.grad is None for leaf in leaves] == [i in frozen for i in range(3)]


def test_without_gradients_there_is_one_product_a_chunk():
    *leaves, targets = inputs()
    wanted = cross_entropy_reference(*leaves, None, targets, z_loss_weight=WEIGHT)
    with torch.no_grad(), Seen() as seen:
        got = chunked_cross_entropy(*leaves, None, targets, z_loss_weight=WEIGHT, chunk_rows=CHUNK)
    assert seen.products == math.ceil(N / CHUNK)
    torch.testing.assert_close(tuple(got), tuple(t.detach() for t in wanted))


def test_only_the_loss_has_a_gradient():
    *leaves, targets = inputs()
    loss, ce, z = chunked_cross_entropy(*leaves, None, targets, z_loss_weight=WEIGHT)
    assert loss.requires_grad
    assert not ce.requires_grad
    assert not z.requires_grad


def test_a_second_backward_pass_finds_the_same():
    *leaves, targets = inputs()
    loss = chunked_cross_entropy(*leaves, CAPS["tanh"], targets, z_loss_weight=WEIGHT).loss
    first = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(a, 3 * b)


@every_cap
@pytest.mark.parametrize("where", [0, 1, 2], ids=["features", "table", "bias"])
def test_nan_in_the_input_is_nan_in_the_loss(cap, where):
    *leaves, targets = inputs()
    with torch.no_grad():
        leaves[where].view(-1)[5] = math.nan
    loss = chunked_cross_entropy(*leaves, cap, targets, z_loss_weight=0.0, chunk_rows=CHUNK).loss
    assert loss.isnan()


def test_logits_far_apart_stay_finite_without_a_cap():
    """Probabilities underflow to 0 there; their logarithm must not be what is summed."""
    (got, gradients), (wanted, expected) = both(inputs(scale=300.0), None)
    assert wanted[1] > 500
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert relative(ours, theirs) < 1e-5


@every_cap
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=INDUCTOR)])
def test_it_compiles_without_a_graph_break(cap, dtype, backend):
    *leaves, targets = inputs()

    def loss(features):
        return chunked_cross_entropy(
            2 * features, *leaves[1:], cap, targets, z_loss_weight=WEIGHT, chunk_rows=CHUNK
        ).loss

    found = []
    torch._dynamo.reset()
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            value = function(leaves[0])
        found.append((value, *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model/head=untied", "model.logit_bias=true"),
        ("model/head=tied_corrected", "model.embedding.factor_dim=16", "model/softcap=polynomial"),
        ("model/head=tied_gelu", "~model/softcap"),
    ],
    ids=["untied", "corrected", "gelu"],
)
def test_a_model_trains_on_the_loss_of_its_logits(small, overrides, monkeypatch):
    """Loss, logged cross entropy and the gradient of every parameter, without holding all logits at once."""
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cpu", 20 * 400)
    task = LanguageModelTask(resolve(small("z_loss_weight=0.05", *overrides)))
    with torch.no_grad():
        for p in task.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ids = torch.randint(0, 400, (3, 33))
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    with Seen() as seen:
        loss, ce, _ = task._losses(batch, None)
        got = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert seen.largest < batch["targets"].numel() * 400
    logits, _ = task.model(batch["inputs"])
    nll = token_nll(logits, batch["targets"]).mean()
    wanted = nll + 0.05 * z_loss(logits)
    torch.testing.assert_close(ce, nll)
    torch.testing.assert_close(loss, wanted)
    expected = torch.autograd.grad(wanted, parameters, allow_unused=True)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@every_cap
@with_bias
@with_z
def test_weights_of_rows_are_in_the_formula_and_ones_are_none(cap, bias, weight):
    tensors = inputs(bias, torch.float64)
    features, table, offset, targets = tensors
    leaves = [t for t in (features, table, offset) if t is not None]
    weights = (torch.arange(N) % 3).double()

    def found(function, **more):
        losses = function(*tensors[:3], cap, targets, z_loss_weight=weight, **more)
        return [*losses, *torch.autograd.grad(losses.loss, leaves)]

    chunked = found(chunked_cross_entropy, weights=weights, chunk_rows=CHUNK)
    plain = found(cross_entropy_reference, weights=weights)
    for one, other in zip(chunked, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, check_dtype=False)
    ones = found(chunked_cross_entropy, weights=torch.ones(N).double(), chunk_rows=CHUNK)
    for one, other in zip(ones, found(chunked_cross_entropy, chunk_rows=CHUNK), strict=True):
        torch.testing.assert_close(one, other)
