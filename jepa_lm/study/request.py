"""Read a command line: the swept values, the overrides of every job, and the config of a job."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from jepa_lm.study.arms import below
from jepa_lm.study.manifest import RUNG
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.values import check_seed

SEED = "seed"
NONE = "none"
"""The option of the group `objective` without a loss."""
OF_THE_SWEEP = ("study", "sweep")
"""Keys of the command line that describe the sweep; jobs do not get them."""


@dataclass(frozen=True)
class Composed:
    """A command line and its config."""

    words: tuple[str, ...]
    """The command line, without the weights of losses that are not there."""
    objective: str
    """The chosen option of the group `objective`."""
    losses: frozenset[str]
    """Nodes that have a loss, see `jepa_lm.study.losses`."""
    seed: int
    """The seed in the config."""
    resolved: Callable[[int], dict[str, Any]]
    """Returns the resolved config with a given seed."""


Compose = Callable[[Sequence[str]], Composed]


@dataclass(frozen=True)
class Interval:
    """A range between two numbers that a search draws from."""

    low: float
    high: float
    log: bool
    """Draw uniformly in the logarithm."""
    whole: bool


@dataclass(frozen=True)
class Request:
    """The user's request."""

    fixed: tuple[str, ...]
    """Overrides of every job."""
    axes: Mapping[str, tuple[str, ...]]
    """Swept values by key, in the order of the command line; `seed` may be one of them."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Ranges of a search by key."""
    ladder: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Overrides of each rung of a study's ladder, smallest first."""

    def cells(self) -> list[dict[str, str]]:
        """Return every combination of the rungs and the swept values, without the seed."""
        axes = {RUNG: tuple(self.ladder)} if self.ladder else {}
        axes |= {key: values for key, values in self.axes.items() if key != SEED}
        return [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]

    def seeds(self, compose: Compose) -> list[int]:
        """Return the seeds of a group.

        Raises:
            UserError: a seed is not a whole number, is out of range, or is given twice.
        """
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
                    f"seed={','.join(given)}: {seed} is given twice and would be one run"
                )
        return seeds

    def given(self, key: str) -> str:
        """Return the command line's override of a key; empty if there is none."""
        if key in self.axes:
            return f"{key}={','.join(self.axes[key])}"
        return next((w for w in self.fixed if w.lstrip("+").partition("=")[0] == key), "")

    def fixed_with(self, cell: Mapping[str, str], without: Sequence[str] = ()) -> list[str]:
        """Return the command line of a combination, without the seed and the keys in `without`."""
        swept = (f"{key}={value}" for key, value in cell.items() if key != RUNG)
        words = [*self.fixed, *self.ladder.get(cell.get(RUNG, ""), ()), *swept]
        kept = [w for w in words if not below(w.lstrip("+~").partition("=")[0], without)]
        return [w for w in kept if w.partition("=")[0] != SEED or SEED not in self.axes]

    def with_default(self, key: str, value: str) -> Request:
        """Return the request with an override of every job, unless it has one of this key."""
        return self if self.given(key) else replace(self, fixed=(*self.fixed, f"{key}={value}"))


def read_request(overrides: Sequence[Override]) -> Request:
    """Sort overrides into swept and fixed ones; the later of two overrides of a key wins.

    Raises:
        UserError: a key is swept over no value.
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
        raise UserError(f"{next(k for k, v in axes.items() if not v)}: is swept over no value")
    return Request(tuple(_delete_mark(word) for word in fixed.values()), axes, intervals)


def _interval(override: Override) -> Interval:
    found = override.value()
    assert isinstance(found, IntervalSweep)
    low, high = found.start, found.end
    if low is None or high is None or not low < high:
        raise UserError(f"{override.input_line}: the first number must be less than the second")
    whole = isinstance(low, int) and isinstance(high, int)
    return Interval(low, high, log="log" in found.tags, whole=whole)


def _delete_mark(word: str) -> str:
    """Turn `~key=`, a deletion without a value, back into `~key`."""
    return word.removesuffix("=") if word.startswith("~") else word
