"""What a setting may be, said in the signature of what it sets: types, ranges and choices.

    @checked
    def __init__(self, *, weight: NotNegative, layers: Count, reduction: Literal["mean", "sum"]) -> None:

A range is part of a type, as in `Annotated[float, Range(above=0)]`; NaN and infinity are in none. A kind is
a type hint as plain data:

    "int" "float" "bool" "str" "null" "any"      {"float": {"above": 0, "most": 1}}
    {"one of": ["mean", "sum"]}                  {"list": "int"}      {"mapping": "float"}
    {"part": "jepa_lm.objective.views.View"}     ["float", "null"]

A list holds alternatives. A part is a class whose objects are built from a node with a `_target_`; the kind
of a hint holds the class itself, and a table of kinds its name.
"""

from __future__ import annotations

import collections.abc
import functools
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, ParamSpec

from jepa_lm.utils.errors import UserError

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
Rate = Annotated[float, Range(least=0, below=1)]
Decay = Annotated[float, Range(least=0, below=1)]
"""What a moving average keeps of its old value at each step."""

Kind = Any
P = ParamSpec("P")
UNIONS = (typing.Union, types.UnionType)
LISTS = (list, tuple, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)
ANYTHING = (Any, object, collections.abc.Callable)
PLAIN = re.compile(r"[+-]?[0-9.][0-9._]*(e[+-]?[0-9]+)?|true|false|null", re.IGNORECASE)
"""Text that without quotation marks would be a number, true, false or null."""
LONGEST_VALUE = 100
"""Maximum number of characters of a value in a message."""
SIMPLE: dict[Any, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    type(None): "null",
}
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "null": "null",
    "any": "any value",
}


def kind_of(hint: Any) -> Kind:
    """Return the kind that a type hint asks for; "any" if it cannot be told."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind = kind_of(args[0])
        for extra in args[1:]:
            if isinstance(extra, Range):
                kind = {kind: {end: v for end, v in asdict(extra).items() if v is not None}}
            elif typing.get_origin(extra) in (Literal, *UNIONS):
                kind = kind_of(extra)  # narrower than a hint that OmegaConf understands
        return kind
    if origin in UNIONS:
        kinds = [kind_of(option) for option in args]
        return "any" if "any" in kinds else kinds
    if origin is Literal:
        return {"one of": list(args)}
    container = origin or hint
    if container in LISTS:
        alike = container is not tuple or args[1:] == (...,)
        return {"list": kind_of(args[0]) if args and alike else "any"}
    if container in MAPPINGS:
        return {"mapping": kind_of(args[1]) if args else "any"}
    if container in SIMPLE:
        return SIMPLE[container]
    return container if isinstance(container, type) and container not in ANYTHING else "any"


def part_of(kind: Kind) -> type | str | None:
    """Return the class that a kind asks for, or its name; None for any other kind."""
    return kind if isinstance(kind, type) else kind.get("part") if isinstance(kind, dict) else None


def is_ours(part: type | str) -> bool:
    """Return whether a class is this project's, or of `torch.nn`: only a `_target_` can make its objects."""
    name = part.__module__ if isinstance(part, type) else part
    return f"{name}.".startswith(("jepa_lm.", "torch.nn."))


def fits(value: Any, kind: Kind) -> bool:
    """Return whether a value is of this kind; an object fits any part, as only `_target_` tells its class."""
    if isinstance(kind, list):
        return any(fits(value, option) for option in kind)
    if isinstance(kind, str):
        return _is_simple(value, kind)
    if (part := part_of(kind)) is not None:
        is_plain = isinstance(value, bool | int | float | str | list | None)
        return not (is_plain and is_ours(part))
    ((name, detail),) = kind.items()
    if name == "one of":
        return any(value == option and type(value) is type(option) for option in detail)
    if name == "list":
        return isinstance(value, list | tuple) and all(fits(entry, detail) for entry in value)
    if name == "mapping":
        return isinstance(value, Mapping)
    return _is_simple(value, name) and Range(**detail).holds(value)


def _is_simple(value: Any, kind: str) -> bool:
    if kind in ("int", "float"):
        a_number = isinstance(value, int if kind == "int" else int | float)
        finite = a_number and abs(value) <= sys.float_info.max  # excludes NaN and infinity
        return finite and not isinstance(value, bool)
    if kind == "null":
        return value is None
    return kind == "any" or isinstance(value, bool if kind == "bool" else str)


def spell(kind: Kind) -> str:
    """Return a kind in words, for messages."""
    if isinstance(kind, list):
        return " or ".join(spell(option) for option in kind)
    if isinstance(kind, str):
        return WORDS[kind]
    if (part := part_of(kind)) is not None:
        return part.__name__ if isinstance(part, type) else part.rpartition(".")[2]
    ((name, detail),) = kind.items()
    if name == "one of":
        return f"one of {', '.join(map(str, detail))}" if len(detail) > 1 else str(detail[0])
    if name == "list":
        return "a list" if detail == "any" else f"a list, each entry {spell(detail)}"
    return "a mapping" if name == "mapping" else f"{WORDS[name]} {Range(**detail)}"


def entries_of(kind: Kind, container: str) -> Kind:
    """Return the kind of the entries of a `list` or `mapping` that a kind allows."""
    for option in kind if isinstance(kind, list) else [kind]:
        if isinstance(option, dict) and container in option:
            return option[container]
    return "any"


def _takes_no_text(kind: Kind) -> bool:
    """Return whether a kind has an alternative that is a number, or true and false."""
    kinds = kind if isinstance(kind, list) else [kind]
    ranges = (k for k in kinds if isinstance(k, dict))
    return any(k in ("int", "float", "bool") for k in kinds) or any(
        k.keys() & {"int", "float"} for k in ranges
    )


def check_kind(key: str, value: Any, kind: Kind) -> None:
    """Raise UserError unless a value, and every entry of a mapping, is of its kind."""
    if not fits(value, kind):
        if isinstance(value, str) and PLAIN.fullmatch(value) and _takes_no_text(kind):
            raise UserError(
                f'{key}="{shown(value)}" (text): expected {spell(kind)}; leave out the quotation marks'
            )
        raise UserError(f"{key}={shown(value)}: expected {spell(kind)}")
    if isinstance(value, Mapping) and "_target_" not in value:
        for name, entry in value.items():
            check_kind(f"{key}.{name}", entry, entries_of(kind, "mapping"))


def check_type(key: str, value: Any, hint: Any) -> None:
    """Raise UserError unless a value fits a type hint; hints about other classes pass."""
    check_kind(key, value, kind_of(hint))


def shown(value: Any) -> str:
    """Return a value as text for a message, cut if it is long."""
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def bounded(kind: Kind) -> bool:
    """Return whether a kind has a range or choices."""
    if isinstance(kind, list):
        return any(bounded(option) for option in kind)
    if not isinstance(kind, dict) or "part" in kind:
        return False
    ((name, detail),) = kind.items()
    return bounded(detail) if name in ("list", "mapping") else True


def bounded_hints(owner: Any) -> dict[str, Kind]:
    """Return the kinds of a function's arguments, or a class's fields, that have a range or choices."""
    hints = typing.get_type_hints(owner, include_extras=True)
    kinds = {name: kind_of(hint) for name, hint in hints.items()}
    return {name: kind for name, kind in kinds.items() if bounded(kind)}


def checked(init: Callable[P, None]) -> Callable[P, None]:
    """Wrap an `__init__` so that arguments given by name are in the ranges and choices of its signature.

    The wrapped function raises UserError, which names the argument and what would be right.
    """
    kinds = functools.cache(lambda: bounded_hints(init))

    @functools.wraps(init)
    def within(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kinds().keys() & kwargs.keys():
            check_kind(name, kwargs[name], kinds()[name])
        init(*args, **kwargs)

    return within
