"""What a command line asks for: what is swept, what every job has, and what a job stands for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from jepa_lm.study.arms import below
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.values import check_seed

SEED, WEIGHT = "seed", "jepa.weight"
NONE = "none"
"""The option of the group `objective` that has no loss to weigh."""
OF_THE_SWEEP = ("study", "sweep")
"""Words of the command line that say what is swept; a job knows nothing of them."""


@dataclass(frozen=True)
class Composed:
    """What a command line stands for."""

    words: tuple[str, ...]
    """The command line, without a weight where there is no objective to weigh."""
    objective: str
    """The chosen option of the group `objective`."""
    seed: int
    """What its config says."""
    resolved: Callable[[int], dict[str, Any]]
    """The resolved config with this seed."""


Compose = Callable[[Sequence[str]], Composed]


@dataclass(frozen=True)
class Interval:
    """Values between two numbers, for a search."""

    low: float
    high: float
    log: bool
    """Draw the logarithm evenly."""
    whole: bool


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    fixed: tuple[str, ...]
    """Overrides that every job has."""
    axes: Mapping[str, tuple[str, ...]]
    """Swept values by key, in the order of the command line; `seed` may be one of them."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Of a search, by key."""

    def cells(self) -> list[dict[str, str]]:
        """Every combination of the swept values, without the seed."""
        keys = [key for key in self.axes if key != SEED]
        return [
            dict(zip(keys, values, strict=True))
            for values in itertools.product(*(self.axes[key] for key in keys))
        ]

    def seeds(self, compose: Compose) -> list[int]:
        """The seeds of a group."""
        given = self.axes.get(SEED)
        if given is None:
            return [compose(self.fixed_with(self.cells()[0])).seed]
        if not all(re.fullmatch(r"[+-]?[0-9]{1,20}", value) for value in given):
            raise UserError(f"seed={','.join(given)}: expected whole numbers")
        seeds = [int(value) for value in given]
        for i, seed in enumerate(seeds):
            check_seed(SEED, seed)
            if seed in seeds[:i]:
                raise UserError(
                    f"seed={','.join(given)}: {seed} is there twice, and would be one run"
                )
        return seeds

    def weights(self) -> str:
        """What the command line says of the weight; empty where it does not."""
        if WEIGHT in self.axes:
            return f"{WEIGHT}={','.join(self.axes[WEIGHT])}"
        return next((w for w in self.fixed if w.lstrip("+").partition("=")[0] == WEIGHT), "")

    def fixed_with(self, cell: Mapping[str, str], without: Sequence[str] = ()) -> list[str]:
        """The command line of a combination, without the seed and without some keys."""
        words = [*self.fixed, *(f"{key}={value}" for key, value in cell.items())]
        kept = [w for w in words if not below(w.lstrip("+~").partition("=")[0], without)]
        return [w for w in kept if w.partition("=")[0] != SEED or SEED not in self.axes]


def read_request(overrides: Sequence[Override]) -> Request:
    """What is swept and what every job has; the later of two overrides of a key counts.

    Raises:
        UserError: a key that is swept over no value.
    """
    axes: dict[str, tuple[str, ...]] = {}
    fixed: dict[str, str] = {}
    intervals: dict[str, Interval] = {}
    for override in overrides:
        key = override.get_key_element()
        if below(key.lstrip("+~"), OF_THE_SWEEP):
            continue
        kinds: tuple[dict[str, Any], ...] = (axes, fixed, intervals)
        for kind in kinds:
            kind.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
        elif override.is_discrete_sweep():
            axes[key] = tuple(override.sweep_string_iterator())
        else:
            intervals[key] = _interval(override)
    if not all(axes.values()):
        raise UserError(f"{next(k for k, v in axes.items() if not v)}: sweeps over no value")
    return Request(tuple(_delete_mark(word) for word in fixed.values()), axes, intervals)


def _interval(override: Override) -> Interval:
    found = override.value()
    assert isinstance(found, IntervalSweep)
    low, high = found.start, found.end
    if low is None or high is None or not low < high:
        raise UserError(f"{override.input_line}: the first number has to be less than the second")
    whole = isinstance(low, int) and isinstance(high, int)
    return Interval(low, high, log="log" in found.tags, whole=whole)


def _delete_mark(word: str) -> str:
    """`~key=` of a deletion without a value is `~key` again."""
    return word.removesuffix("=") if word.startswith("~") else word
