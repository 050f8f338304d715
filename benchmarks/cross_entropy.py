"""Claim 5: a head's cross entropy and z-loss, forward and backward, against its three matrix products.

    logits = features table^T,   d features = d logits table,   d table = d logits^T features

The limit of the first claim is the time of the products alone, on whole matrices and into allocated memory.
The plain formula needs them too, so nothing is faster than it by more than plain / products, the limit of the
second claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Claim, Timings, at_least, at_most, interleaved
from jepa_lm.model.cross_entropy import CrossEntropy, chunked_cross_entropy, cross_entropy_reference
from jepa_lm.model.heads import PolynomialSoftcap, Softcap, TanhSoftcap

ROUNDS = 9
ROWS, VOCABULARY = 4096, 8192
CASES: tuple[tuple[torch.dtype, int, type[Softcap]], ...] = (
    (torch.float32, 640, TanhSoftcap),
    (torch.float32, 336, TanhSoftcap),
    (torch.bfloat16, 640, TanhSoftcap),
    (torch.bfloat16, 336, TanhSoftcap),
    (torch.bfloat16, 640, PolynomialSoftcap),
)
"""Dtype of the products, width of the token table, soft cap."""
CAP, Z_LOSS_WEIGHT = 30.0, 1e-4
OVERHEAD, SPEEDUP = 1.25, 3.0
"""Targets: at most this many times the products; at least this many times faster than the plain formula, or,
where that takes less than 3.75 times the products, what the first target leaves of the limit."""
TOLERANCE = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-5, 1e-2)}
"""Of the loss and of the gradients. The plain formula rounds the table's gradient to the products' dtype."""


class Problem:
    """Random inputs of one case.

    Args:
        dtype: dtype of the products. width: width of features and table. softcap: cap of the logits.
    """

    def __init__(self, dtype: torch.dtype, width: int, softcap: Softcap) -> None:
        self.dtype, self.softcap = dtype, softcap
        self.features = torch.randn(ROWS, width, requires_grad=True)
        # The logits have a standard deviation of 5, so that the cap affects some of them.
        self.table = (5 / width**0.5 * torch.randn(VOCABULARY, width)).requires_grad_()
        self.targets = torch.randint(0, VOCABULARY, (ROWS,))

    def run(self, function: Callable[..., CrossEntropy]) -> Tensor:
        """Run forward and backward and return the loss."""
        self.features.grad = self.table.grad = None
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = function(
                self.features,
                self.table,
                None,
                self.softcap,
                self.targets,
                z_loss_weight=Z_LOSS_WEIGHT,
            ).loss
        loss.backward()
        return loss.detach()

    def products(self) -> Callable[[], None]:
        """Return a function that computes the three matrix products."""
        features, table = (t.detach().to(self.dtype) for t in (self.features, self.table))
        logits = torch.empty(ROWS, VOCABULARY, dtype=self.dtype)
        d_features, d_table = torch.empty_like(features), torch.empty_like(table)

        def multiply() -> None:
            torch.mm(features, table.T, out=logits)
            torch.mm(logits, table, out=d_features)
            torch.mm(logits.T, features, out=d_table)

        return multiply

    def check(self) -> dict[str, float]:
        """Check that both agree, and return the relative differences from the plain formula."""
        found = []
        for function in (chunked_cross_entropy, cross_entropy_reference):
            loss = self.run(function)
            found.append((loss, self.features.grad, self.table.grad))
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(*found, strict=True)]
        for_loss, for_gradients = TOLERANCE[self.dtype]
        assert errors[0] < for_loss, errors
        assert max(errors[1:]) < for_gradients, errors
        return dict(zip(("loss_error", "features_error", "table_error"), errors, strict=True))


def claims() -> Iterator[Claim]:
    """Yield two claims for each case."""
    for dtype, width, cap in CASES:
        problem = Problem(dtype, width, cap(cap=CAP))
        errors = problem.check()
        timings = interleaved(
            problem.products(),
            rounds=ROUNDS,
            chunks=partial(problem.run, chunked_cross_entropy),
            plain=partial(problem.run, cross_entropy_reference),
        )
        case = f"{str(dtype).removeprefix('torch.')}_{width}_{cap.__name__}"
        yield from _claims_of(case, timings, {"rows": ROWS, "vocabulary": VOCABULARY} | errors)


def _claims_of(case: str, timings: Timings, details: dict[str, float]) -> Iterator[Claim]:
    products, chunks, plain = timings.reference, timings.median("chunks"), timings.median("plain")
    details |= {
        "products_ms": 1000 * products,
        "chunks_ms": 1000 * chunks,
        "plain_ms": 1000 * plain,
    }
    yield at_most(
        f"cross_entropy/{case}/products",
        chunks / products,
        unit="times its three matrix products",
        target=OVERHEAD,
        limit=1.0,
        spread=timings.spread * chunks / products,
        details=details,
    )
    yield at_least(
        f"cross_entropy/{case}/plain",
        plain / chunks,
        unit="times the plain formula",
        target=min(SPEEDUP, plain / products / OVERHEAD),
        limit=plain / products,
        spread=timings.spread * plain / chunks,
        details=details,
    )
