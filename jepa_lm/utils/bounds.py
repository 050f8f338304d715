"""Ranges of numbers for signatures: `def __init__(self, *, weight: NotNegative, layers: Count)`.

A range is part of a type, as in `Annotated[float, Range(above=0)]`; `jepa_lm.utils.kinds` reads it. NaN and
infinity are in no range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

LARGEST_SEED = 2**32 - 1
"""The largest seed that all random generators in use accept."""


@dataclass(frozen=True)
class Range:
    """A range of numbers: `least` and `most` belong to it, `above` and `below` do not."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        words = {
            "of at least": self.least,
            "above": self.above,
            "of at most" if self.above is None else "at most": self.most,
            "below": self.below,
        }
        return " and ".join(f"{word} {end}" for word, end in words.items() if end is not None)


Count = Annotated[int, Range(least=1)]
Whole = Annotated[int, Range(least=0)]
Seed = Annotated[int, Range(least=0, most=LARGEST_SEED)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
PositiveShare = Annotated[float, Range(above=0, most=1)]
Decay = Annotated[float, Range(least=0, below=1)]
"""What a moving average keeps of its old value at each step."""
