"""Claim 4: speed of SIGReg's sweep, forward and backward, against the plain formula in eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Claim, at_least, interleaved
from jepa_lm.objective.sigreg import knot_weights, statistic, statistic_reference

ROUNDS = 5
SHAPES = {"published_903": (64, 64, 672), "demo": (8, 64, 672)}
"""Rows, time steps and directions: a GPU's share of #903's batch; the demo's batch."""


def check(u: Tensor, t: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Check that both agree, and return the relative differences of loss and gradient."""
    losses, grads = [], []
    for function, x in ((statistic, u), (statistic_reference, u.double())):
        leaf = x.clone().requires_grad_()
        loss = function(leaf, t, weights)
        loss.backward()
        assert leaf.grad is not None
        losses.append(loss.item())
        grads.append(leaf.grad.double())
    loss_error = abs(losses[0] - losses[1]) / losses[1]
    grad_error = ((grads[0] - grads[1]).norm() / grads[1].norm()).item()
    assert loss_error < 1e-6, loss_error
    assert grad_error < 1e-5, grad_error
    return loss_error, grad_error


def claims() -> Iterator[Claim]:
    """Yield a claim for each shape."""
    t, weights = knot_weights(0.2, 4.0, 17, True)
    for name, shape in SHAPES.items():
        u = torch.randn(shape)
        loss_error, grad_error = check(u, t, weights)

        def run(function: Callable[..., Tensor], u: Tensor = u) -> None:
            function(u.clone().requires_grad_(), t, weights).backward()

        timings = interleaved(
            partial(run, statistic_reference),
            rounds=ROUNDS,
            sweep=partial(run, statistic),
        )
        speedup = timings.reference / timings.median("sweep")
        yield at_least(
            f"sigreg/{name}",
            speedup,
            unit="times the plain formula",
            target=6.0 if name.startswith("published") else 3.0,
            limit=17.0,
            spread=speedup * timings.spread,
            details={
                "shape": list(shape),
                "plain_ms": 1000 * timings.reference,
                "sweep_ms": 1000 * timings.median("sweep"),
                "loss_error": loss_error,
                "gradient_error": grad_error,
            },
        )
