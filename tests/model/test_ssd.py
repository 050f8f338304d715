"""The chunked scan against the recurrence that it computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.model import ssd as module
from jepa_lm.model.ssd import final_state, ssd, ssd_sequential


def arguments(B=2, T=37, H=4, P=3, G=2, N=5, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype)

    dt = F.softplus(draw(B, T, H) - 1)
    a = -16 * torch.rand(H, dtype=dtype)
    leaves = [draw(B, T, H, P), dt, a, draw(B, T, G, N), draw(B, T, G, N), draw(B, H, P, N)]
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        (dict(), 8),  # 37 is not a multiple of the chunk
        (dict(T=1), 16),
        (dict(T=64, H=6, G=3), 16),
        (dict(B=1, T=129, H=2, G=1, P=4), 64),
        (dict(T=7, H=3, G=3), 7),
        (dict(B=1, T=150, H=2, G=1), 1),  # more chunks than are passed on at once
    ],
)
@pytest.mark.parametrize("carried", [False, True])
def test_chunks_equal_the_recurrence(shape, chunk, carried):
    *inputs, state = arguments(**shape)
    leaves = [*inputs, state] if carried else inputs
    results = []
    for scan in (ssd_sequential, lambda *a: ssd(*a, chunk=chunk)):
        y, last = scan(*inputs, state if carried else None)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        loss = (y * weights).sum() + (last * last).sum()
        results.append([y, last, *torch.autograd.grad(loss, leaves)])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


def test_final_state_is_that_of_the_scan():
    x, dt, a, b, c, _ = arguments(T=50, H=6, G=3)
    torch.testing.assert_close(
        final_state(x, dt, a, b), ssd(x, dt, a, b, c, chunk=8)[1], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("what", ["scan", "final state"])
def test_a_long_text_stays_exact_in_float32(what):
    """Late in a text the summed decay is large; differences of it must not lose their digits."""
    exact = arguments(B=1, T=4096, H=2, G=1)
    single = [v.detach().float() for v in exact]
    wanted, last = ssd_sequential(*exact[:5])
    if what == "scan":
        got, wanted = ssd(*single[:5], chunk=64)[0][:, -64:], wanted[:, -64:]
    else:
        got, wanted = final_state(*single[:4]), last
    torch.testing.assert_close(got.double(), wanted, rtol=2e-5, atol=2e-5)


def test_differences_of_long_sums_would_be_seen(monkeypatch):
    """Planted bug: the decay between chunk borders as a difference of running sums."""

    def imprecise(added, log_decay, state):
        B, K, G, R, P, N = added.shape
        total = F.pad(log_decay, (0, 0, 0, 0, 1, 0)).cumsum(1).permute(0, 2, 3, 1)
        decay = module._decay_between(total)
        rows = torch.cat((state[:, None], added), 1).permute(0, 2, 3, 1, 4, 5)
        return (decay @ rows.flatten(-2)).view(B, G, R, K + 1, P, N).permute(0, 3, 1, 2, 4, 5)

    x, dt, a, b, c, _ = (v.detach() for v in arguments(B=1, T=4096, H=2, G=1))
    inputs = x, dt, torch.full_like(a, -3.0), b, c
    wanted = ssd_sequential(*inputs)[0][:, -64:]

    def error() -> float:
        got = ssd(*(v.float() for v in inputs), chunk=1)[0][:, -64:]
        return ((got - wanted).norm() / wanted.norm()).item()

    assert error() < 1e-6
    monkeypatch.setattr(module, "CHUNKS_AT_ONCE", 10**6)
    assert error() < 1e-6
    monkeypatch.setattr(module, "_pass_on_at_once", imprecise)
    assert error() > 2e-5


def test_a_strong_decay_over_a_long_chunk_is_finite():
    """exp of a positive difference would overflow if the mask came too late."""
    x, dt, a, b, c, _ = arguments(B=1, T=256, H=2, G=1, dtype=torch.float32)
    y, last = ssd(x, dt * 20, a, b, c, chunk=256)
    (y.sum() + last.sum()).backward()
    for leaf in (x, dt, a, b, c):
        assert torch.isfinite(leaf.grad).all()


def test_the_scan_compiles_without_a_graph_break():
    inputs = [v.detach().float() for v in arguments(T=40)]
    compiled = torch.compile(lambda *a: ssd(*a, chunk=16), fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(*inputs), ssd(*inputs, chunk=16), strict=True):
        torch.testing.assert_close(got, wanted)
