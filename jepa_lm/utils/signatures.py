"""Signatures of the classes that a config may name, from a committed table: reading it imports nothing.

`python -m jepa_lm.utils.signatures` writes the table anew, which a changed signature needs. It holds the
public classes of all modules that `conf/` names; every other target is imported and inspected.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from jepa_lm.utils.files import write_text
from jepa_lm.utils.kinds import Kind, is_ours, kind_of, part_of
from jepa_lm.utils.paths import CONF

TABLE = Path(__file__).with_suffix(".json")
TARGET = re.compile(r"_target_: *(jepa_lm\.[\w.]+)")


@dataclass(frozen=True)
class Signature:
    """What a class or function takes, and what it makes.

    Args:
        settings: kind of each argument. required: arguments without a default.
        open: takes any other argument as well. target: the class or function, or its name.
        makes: names of the parts of the table that its objects can be; None if that must be looked up.
    """

    settings: Mapping[str, Kind]
    required: tuple[str, ...]
    open: bool
    target: Any
    makes: frozenset[str] | None = None

    def fits(self, kind: Kind) -> bool:
        """Return whether it can create what a kind asks for; True if that cannot be decided."""
        if isinstance(kind, list):
            return any(self.fits(option) for option in kind)
        wanted = part_of(kind)
        if wanted is None:
            return kind == "any" or (isinstance(kind, dict) and "mapping" in kind)
        if self.makes is not None and isinstance(wanted, str):
            return wanted in self.makes
        return _makes(*(get_object(x) if isinstance(x, str) else x for x in (self.target, wanted)))


def _makes(target: Any, wanted: type) -> bool:
    if not isinstance(target, type):
        return True
    if getattr(wanted, "_is_protocol", False):
        return all(hasattr(target, name) for name in vars(wanted) if not name.startswith("_"))
    return issubclass(target, wanted)


def inspected(target: Any) -> Signature:
    """Return the signature of a class or function."""
    parameters = dict(inspect.signature(target).parameters)
    called = target
    if isinstance(target, type):
        owner = next(base for base in target.__mro__ if "__init__" in vars(base))
        if owner is not object:
            called = vars(owner)["__init__"]
        if (owner.__module__, owner.__name__) == ("torch.nn.modules.module", "Module"):
            parameters = {}  # it refuses whatever its signature seems to accept
    try:
        hints = typing.get_type_hints(called, include_extras=True)
    except (NameError, TypeError):
        hints = {}
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return Signature(
        settings={
            name: kind_of(hints.get(name, Any))
            for name, parameter in parameters.items()
            if parameter.kind not in variadic
        },
        required=tuple(
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        ),
        open=any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()),
        target=target,
    )


@functools.cache
def table() -> dict[str, Signature]:
    """Return the table: signatures by the names under which a config may name a class."""
    return {
        name: Signature(
            settings=entry.get("settings", {}),
            required=tuple(entry.get("required", ())),
            open=entry.get("open", False),
            target=name,
            makes=frozenset(entry.get("makes", ())),
        )
        for name, entry in json.loads(TABLE.read_text(encoding="utf-8")).items()
    }


def write() -> str:
    """Return the text of the table, one class a line, from the classes as they are now."""
    found = {name: inspected(target) for name, target in sorted(_classes().items())}
    kinds = (kind for signature in found.values() for kind in signature.settings.values())
    parts = {_name(part): part for kind in kinds for part in _parts(kind) if is_ours(part)}

    def entry(signature: Signature) -> str:
        held = {
            "open": signature.open,  # its other arguments may be another package's
            "settings": {} if signature.open else signature.settings,
            "required": () if signature.open else signature.required,
            "makes": sorted(n for n, part in parts.items() if _makes(signature.target, part)),
        }
        return json.dumps({key: value for key, value in held.items() if value}, default=_plain)

    lines = (f"{json.dumps(name)}: {entry(signature)}" for name, signature in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _classes() -> dict[str, type]:
    """Return every class to list, by name: those that `conf/` names, and their neighbours."""
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    named = {name: get_object(name) for text in texts for name in TARGET.findall(text)}
    modules = {importlib.import_module(target.__module__) for target in named.values()}
    neighbours = {
        _name(value): value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and name[0] != "_"
        if not inspect.isabstract(value) and not getattr(value, "_is_protocol", False)
        if _by_keyword(value)
    }
    return {**named, **neighbours}


def _by_keyword(target: type) -> bool:
    """Return whether all arguments are given by keyword, as a config gives them."""
    kinds = {parameter.kind for parameter in inspect.signature(target).parameters.values()}
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD in kinds
    return not positional and not inspected(target).open


def _parts(kind: Kind) -> Iterator[type]:
    if isinstance(kind, type):
        yield kind
    elif isinstance(kind, list | dict):
        for below in kind if isinstance(kind, list) else kind.values():
            yield from _parts(below)


def _plain(part: type) -> Kind:
    return {"part": _name(part)} if is_ours(part) else "any"


def _name(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


if __name__ == "__main__":
    write_text(TABLE, write())
