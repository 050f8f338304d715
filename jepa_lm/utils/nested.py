"""Nested mappings, such as configs and records, by dotted key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by dotted key; lists and empty mappings count as values."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def at(node: Any, *keys: str) -> Any:
    """Return what is below these keys; None if there is nothing, or no mapping on the way."""
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def class_name(node: Any) -> str:
    """Return the name of the class that a config node builds; `?` if it names none."""
    return str(at(node, "_target_") or "?").rpartition(".")[2]
