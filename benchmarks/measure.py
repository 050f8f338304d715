"""How claims are timed: interleaved, as medians, beside the machine's own ceilings.

A is the reference, B what is claimed about. Each round times A, B, A, so that a machine that slows
down slows both, and the two series of A tell how far apart equal things come out (the A/A spread).
A claim fails only when it misses its target by more than that spread.
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
    """One measured figure.

    Args:
        value: what was measured, in `unit`. target: what is claimed, None for a mere report.
        limit: the best that could be, measured in the same run where it depends on the machine.
        spread: what A/A differs by, in `unit`. ok: the target is met, or missed within the spread.
        details: what else a reader needs to judge the value.
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
        """Plain values, floats to four digits."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def at_most(name: str, value: float, *, target: float, spread: float, **rest: Any) -> Claim:
    """A claim that the value does not exceed its target."""
    ok = value <= target + spread
    return Claim(name=name, value=value, target=target, spread=spread, ok=ok, **rest)


def at_least(name: str, value: float, *, target: float, spread: float, **rest: Any) -> Claim:
    """A claim that the value reaches its target."""
    ok = value >= target - spread
    return Claim(name=name, value=value, target=target, spread=spread, ok=ok, **rest)


def report(name: str, value: float, *, spread: float, **rest: Any) -> Claim:
    """A figure without a target."""
    return Claim(name=name, value=value, target=None, spread=spread, ok=True, **rest)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return value


@dataclass(frozen=True)
class Timings:
    """Seconds of each round: of A, of what came between, and of A again."""

    first: list[float]
    between: dict[str, list[float]]
    again: list[float]

    @property
    def reference(self) -> float:
        """Median seconds of A over both series."""
        return statistics.median(self.first + self.again)

    def median(self, name: str) -> float:
        """Median seconds of a contender."""
        return statistics.median(self.between[name])

    @property
    def spread(self) -> float:
        """A/A spread as a share of A."""
        return aa_spread(self.first, self.again) / self.reference


def interleaved(
    reference: Callable[[], Any], *, rounds: int, **contenders: Callable[[], Any]
) -> Timings:
    """Time A, every contender, A again, in that order, `rounds` times after one round unmeasured."""
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
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def aa_spread(first: Sequence[float], again: Sequence[float]) -> float:
    """How far apart two series of the same thing come out.

    The larger of the shift, |median of the differences|, and what the shift could be by chance: the
    quartile distance of the differences over the root of their number, about its standard error.
    """
    differences = [b - a for a, b in zip(first, again, strict=True)]
    low, _, high = statistics.quantiles(differences, n=4)
    return max(abs(statistics.median(differences)), (high - low) / len(differences) ** 0.5)


def matrix_product(size: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """The product of two random [size, size] matrices, ready to be timed."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def gemm_gflops(dtype: torch.dtype, rounds: int = 5) -> float:
    """The machine's ceiling for matrix products of one type, in GFLOP/s."""
    best = 0.0
    for size in GEMM_SIZES:
        product = matrix_product(size, dtype)
        product()
        median = statistics.median(seconds(product) for _ in range(rounds))
        best = max(best, 2 * size**3 / median / 1e9)
    return best


def memcpy_gbps(n_bytes: int = 1 << 28, rounds: int = 9) -> float:
    """Bytes copied per second by one thread in blocks of this size, in GB/s."""
    source = np.random.default_rng(0).integers(256, size=n_bytes, dtype=np.uint8)
    target = source.copy()
    repeats = max(1, (1 << 26) // n_bytes)

    def copy() -> None:
        for _ in range(repeats):
            np.copyto(target, source)

    return repeats * n_bytes / statistics.median(seconds(copy) for _ in range(rounds)) / 1e9
