"""Read records by type hints: values of the right type, within bounds, and nothing else.

A record may be edited by hand, truncated, of another version, or malicious. A type hint says what each
entry may hold; entries that do not fit are left out and reported.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from jepa_lm.utils.quoting import cut

LARGEST_NUMBER, LARGEST_COUNT = 1e15, 1 << 53
LONGEST_TEXT, LONGEST_KEY = 1 << 16, 400
MOST_DEPTH, MOST_ENTRIES = 40, 100_000
"""Limits of a record: nesting levels, and entries of one list or mapping."""
TOLD = 60
"""Largest number of characters of a value that a message shows."""


class MisfitError(ValueError):
    """A value does not fit its type hint."""


def read(hint: Any, value: Any, where: str, wrong: list[str]) -> Any:
    """Return the parts of a value that fit a type hint.

    Args:
        hint: type of numbers, strings, choices of strings, lists, tuples, mappings, typed dictionaries and
            dataclasses.
        value: as parsed from JSON or YAML.
        where: path of the value, for messages.
        wrong: receives a line for everything that is left out.

    Raises:
        MisfitError: the value as a whole does not fit.
    """
    return _read(hint, value, where, wrong, 0)


def _read(hint: Any, value: Any, where: str, wrong: list[str], depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise MisfitError(f"{where}: more than {MOST_DEPTH} levels")
    origin, options = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        (hint,) = (option for option in options if option is not type(None))
        return _read(hint, value, where, wrong, depth)
    if hint is Any:
        return _anything(value, where, wrong, depth)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _made(hint, value, where, wrong, depth)
    if typing.is_typeddict(hint) and isinstance(value, dict):
        return _known(hint, value, where, wrong, depth)
    if origin in (dict, Mapping) and isinstance(value, dict):
        of = options[1] if options else Any
        return _entries(dict.fromkeys(value, of), value, where, wrong, depth)
    if origin is list and isinstance(value, list):
        return _list(options[0], value, where, wrong, depth)
    if origin is tuple and isinstance(value, list):
        if options[-1] is Ellipsis:
            return tuple(_list(options[0], value, where, wrong, depth))
        if len(value) == len(options):
            parts = enumerate(zip(options, value, strict=True))
            return tuple(_read(o, v, f"{where}[{i}]", wrong, depth + 1) for i, (o, v) in parts)
    if origin is typing.Literal and isinstance(value, str) and value in options:
        return value
    if _is_plain(hint, value):
        return value
    raise MisfitError(f"{where} is {_told(value)}, not {_spelled(hint)}")


def _is_plain(hint: Any, value: Any) -> bool:
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= LARGEST_NUMBER  # and so neither NaN nor infinite
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and abs(value) <= LARGEST_COUNT
    if hint is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    return hint is bool and isinstance(value, bool)


def _anything(value: Any, where: str, wrong: list[str], depth: int) -> Any:
    """Read any value that JSON can hold, within bounds."""
    if isinstance(value, dict):
        return _read(dict[str, Any], value, where, wrong, depth)
    if isinstance(value, list):
        return _read(list[Any], value, where, wrong, depth)
    for hint in (bool, int, float, str):
        if _is_plain(hint, value):
            return value
    if value is None:
        return None
    raise MisfitError(f"{where} is {_told(value)}")


def _made(hint: Any, value: dict[str, Any], where: str, wrong: list[str], depth: int) -> Any:
    """Build a dataclass; fields without a default must be present, and every field must fit."""
    hints = typing.get_type_hints(hint)
    found = {}
    for field in dataclasses.fields(hint):
        if field.name in value:
            path = f"{where}.{field.name}" if where else field.name
            found[field.name] = _read(hints[field.name], value[field.name], path, wrong, depth + 1)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise MisfitError(f"{where or 'it'} has no {field.name}")
    return hint(**found)


def _known(hint: Any, value: dict[str, Any], where: str, wrong: list[str], depth: int) -> Any:
    """Read a typed dictionary; keys that it does not declare may hold anything."""
    hints = typing.get_type_hints(hint)
    return _entries({key: hints.get(key, Any) for key in value}, value, where, wrong, depth)


def _entries(
    hints: Mapping[Any, Any], value: dict[Any, Any], where: str, wrong: list[str], depth: int
) -> dict[str, Any]:
    if len(value) > MOST_ENTRIES:
        raise MisfitError(f"{where or 'it'} has {len(value)} entries")
    found = {}
    for key, entry in value.items():
        try:
            if not isinstance(key, str) or len(key) > LONGEST_KEY:
                raise MisfitError(f"{where or 'it'} has the key {_told(key)}")
            found[key] = _read(
                hints[key], entry, f"{where}.{key}" if where else key, wrong, depth + 1
            )
        except MisfitError as misfit:
            wrong.append(str(misfit))
    return found


def _list(hint: Any, value: list[Any], where: str, wrong: list[str], depth: int) -> list[Any]:
    if len(value) > MOST_ENTRIES:
        raise MisfitError(f"{where or 'it'} has {len(value)} entries")
    found = []
    for i, entry in enumerate(value):
        try:
            found.append(_read(hint, entry, f"{where}[{i}]", wrong, depth + 1))
        except MisfitError as misfit:
            wrong.append(str(misfit))
    return found


def _told(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_COUNT:
        return "a number out of bounds"
    return cut(repr(value), TOLD)


def _spelled(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    if hint in words:
        return words[hint]
    return "a list" if (typing.get_origin(hint) or hint) in (list, tuple) else "an object"
