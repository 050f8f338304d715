"""Correction for several treatments in one study: each has one claim, and Holm goes over the claims.

A treatment's controls need no correction: what is claimed of it must hold against each of them at the full
level (intersection-union), and the other arms have no say. Claims of treatments that are the same runs count
once.

Holm    p of rank i among k, smallest first, times k - i + 1, kept in order (Holm 1979)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple


class Claim(NamedTuple):
    """What the scores of a treatment would claim, before any correction."""

    difference: float | None = None
    """p of the claim that it helps, if its scores are better, or else that it hurts; None without a test."""
    same: float | None = None
    """p of the claim that it is equivalent to its baseline."""
    runs: Hashable = None
    """Equal for treatments that are the same runs."""


class Adjusted(NamedTuple):
    """A claim after correction for the other treatments."""

    difference: float | None
    same: float | None
    treatments: int = 1
    """Different treatments that are tested."""


def holm(p: Mapping[Hashable, float | None]) -> dict[Hashable, float]:
    """Return p-values after Holm's step-down; those that are None are left out."""
    order = sorted((value, i, key) for i, (key, value) in enumerate(p.items()) if value is not None)
    adjusted: dict[Hashable, float] = {}
    largest = 0.0
    for rank, (value, _, key) in enumerate(order):
        largest = max(largest, min(1.0, value * (len(order) - rank)))
        adjusted[key] = largest
    return adjusted


def adjust(claims: Mapping[str, Claim]) -> dict[str, Adjusted]:
    """Correct the claims of the treatments of a study, by name."""
    different = {claim.runs: claim for claim in claims.values()}
    difference = holm({key: claim.difference for key, claim in different.items()})
    same = holm({key: claim.same for key, claim in different.items()})
    tested = max(1, len(difference))
    return {
        name: Adjusted(difference.get(claim.runs), same.get(claim.runs), tested)
        for name, claim in claims.items()
    }
