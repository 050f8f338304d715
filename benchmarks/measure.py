"""Time claims: interleaved, as medians, and compared with the machine's own ceilings.

A is the reference, B the subject of the claim. Each round times A, B, A: if the machine slows down, it slows
both, and the two series of A show how much equal things differ (the A/A spread). A claim fails only if it
misses its target by more than that spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

GEMM_SIZES = (1024, 2048)
"""Square matrices; the faster size is the ceiling."""


@dataclass(frozen=True)
class Claim:
    """A measured figure and its target.

    Args:
        value: measured value, in `unit`. target: claimed value, None for a report without a claim.
        limit: best possible value, measured in the same run if it depends on the machine.
        spread: A/A spread, in `unit`. ok: True if the target is met, or missed within the spread.
        details: other figures that help to judge the value.
    """

    name: str
    value: float
    unit: str
    target: float | None
    limit: float | None
    spread: float
    ok: bool
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, with floats rounded to four digits."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def at_most(name: str, value: float, *, target: float, spread: float, **rest: Any) -> Claim:
    """Return a claim that the value does not exceed its target."""
    ok = value <= target + spread
    return Claim(name=name, value=value, target=target, spread=spread, ok=ok, **rest)


def at_least(name: str, value: float, *, target: float, spread: float, **rest: Any) -> Claim:
    """Return a claim that the value reaches its target."""
    ok = value >= target - spread
    return Claim(name=name, value=value, target=target, spread=spread, ok=ok, **rest)


def report(name: str, value: float, *, spread: float, **rest: Any) -> Claim:
    """Return a figure without a target."""
    return Claim(name=name, value=value, target=None, spread=spread, ok=True, **rest)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return value


@dataclass(frozen=True)
class Timings:
    """Seconds of each round: of A, of the contenders between, and of A again."""

    first: list[float]
    between: dict[str, list[float]]
    again: list[float]

    @property
    def reference(self) -> float:
        """Median seconds of A over both series."""
        return statistics.median(self.first + self.again)

    def median(self, name: str) -> float:
        """Return the median seconds of a contender."""
        return statistics.median(self.between[name])

    @property
    def spread(self) -> float:
        """A/A spread as a fraction of A."""
        return aa_spread(self.first, self.again) / self.reference


def interleaved(
    reference: Callable[[], Any], *, rounds: int, **contenders: Callable[[], Any]
) -> Timings:
    """Time A, every contender and A again, in that order, for `rounds` rounds after one warm-up round."""
    timings = Timings([], {name: [] for name in contenders}, [])
    for i in range(rounds + 1):
        first = seconds(reference)
        between = {name: seconds(contender) for name, contender in contenders.items()}
        again = seconds(reference)
        if i:
            timings.first.append(first)
            timings.again.append(again)
            for name, value in between.items():
                timings.between[name].append(value)
    return timings


def seconds(function: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def aa_spread(first: Sequence[float], again: Sequence[float]) -> float:
    """Return how much two series of the same thing differ.

    This is the larger of the shift, |median of the differences|, and the shift that chance could cause: the
    interquartile range of the differences over the root of their number, about its standard error.
    """
    differences = [b - a for a, b in zip(first, again, strict=True)]
    low, _, high = statistics.quantiles(differences, n=4)
    return max(abs(statistics.median(differences)), (high - low) / len(differences) ** 0.5)


def matrix_product(size: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Return a function that multiplies two random [size, size] matrices."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def gemm_gflops(dtype: torch.dtype, rounds: int = 5) -> float:
    """Measure the machine's ceiling for matrix products of a dtype, in GFLOP/s."""
    best = 0.0
    for size in GEMM_SIZES:
        product = matrix_product(size, dtype)
        product()
        median = statistics.median(seconds(product) for _ in range(rounds))
        best = max(best, 2 * size**3 / median / 1e9)
    return best


def memcpy_gbps(n_bytes: int = 1 << 28, rounds: int = 9) -> float:
    """Measure how fast one thread copies blocks of this size, in GB/s."""
    source = np.random.default_rng(0).integers(256, size=n_bytes, dtype=np.uint8)
    target = source.copy()
    repeats = max(1, (1 << 26) // n_bytes)

    def copy() -> None:
        for _ in range(repeats):
            np.copyto(target, source)

    return repeats * n_bytes / statistics.median(seconds(copy) for _ in range(rounds)) / 1e9
