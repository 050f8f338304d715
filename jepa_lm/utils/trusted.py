"""Treat configs from files as data: make one bounded plain copy, and build only that copy.

    file -> plain (types, size, depth) -> build_part (classes of one room, no references) -> object

Hydra's `instantiate` would call whatever `_target_` names and resolve `${...}`, which can call and read
anything. Here a class is allowed only if it belongs to the part's room, or if the user named its module on
the command line (`trust=[my_module]`); never because a file names it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from jepa_lm.utils.config import Find, build, check_node, check_schema, shown
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.former_names import modern
from jepa_lm.utils.schema import Limits

MOST_NODES, MOST_DEPTH, MOST_TEXT = 20_000, 40, 1 << 16
"""Limits on a config: values, levels, characters of a text. Real ones have about 400, 8 and 200."""
MOST_INTEGER = 1 << 63
MODULES_A_BLOCK = 64
REFERENCE = "${"


@dataclass(frozen=True)
class Room:
    """The classes that a part of a config may name: those of `modules` derived from `base`."""

    modules: tuple[str, ...]
    """Modules, including everything below them."""
    base: type = object


ROOMS = {
    "model": Room(("jepa_lm.model",), nn.Module),
    "data": Room(
        (
            "jepa_lm.data.token_data",
            "jepa_lm.data.corpora",
            "jepa_lm.data.tokenizers",
            "jepa_lm.data.rows",
            "jepa_lm.data.pairs",
            "jepa_lm.data.pair_files",
            "jepa_lm.data.symbols",
            "jepa_lm.data.synthetic",
        )
    ),
    "quantization": Room(("jepa_lm.quantization",)),
}


@dataclass(frozen=True)
class Trust:
    """How far files are trusted in this process, set only by the command line.

    Args:
        modules: modules besides this package whose classes files may name. limits: see `Limits`.
    """

    modules: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Trust:
        """Return the trust from the nodes `trust` and `limits` of a command's config.

        Raises:
            UserError: a limit below 1, or a module that cannot be imported.
        """
        check_schema(config["limits"], Limits, "limits.")
        for name in config["trust"]:
            _import(name)
        return cls(tuple(config["trust"]), Limits(**config["limits"]))


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # the user's own module, which may do anything
        raise UserError(
            f"trust=[{name}]: cannot be imported ({type(error).__name__}: {error}); name a module that "
            "Python finds, for example with PYTHONPATH"
        ) from error


def plain(value: Any, source: str) -> Any:
    """Return a copy of dictionaries, lists, strings and numbers, of bounded size; tuples become lists.

    Former class names are replaced by the current ones.

    Args:
        source: where the value comes from, for messages.

    Raises:
        UserError: a value of another type, or a config that is too large.
    """
    left = MOST_NODES

    def copied(node: Any, where: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MOST_DEPTH:
            raise UserError(
                f"{source}: its config is too large (more than {MOST_NODES} values or {MOST_DEPTH} levels)"
            )
        if node is None or type(node) in (bool, float):
            return node
        if type(node) is int and -MOST_INTEGER <= node < MOST_INTEGER:
            return node
        if type(node) is str and len(node) <= MOST_TEXT:
            return node
        if type(node) in (list, tuple):
            return [copied(x, f"{where}[{i}]", depth + 1) for i, x in enumerate(node)]
        if type(node) is dict and all(type(key) is str and len(key) <= 200 for key in node):
            return {key: copied(x, f"{where}.{key}", depth + 1) for key, x in node.items()}
        told = f"{len(node)} characters" if type(node) is str else type(node).__name__
        raise UserError(
            f"{source}: its config holds {told} at {where[:200] or 'the top level'}; refused"
        )

    return modern(copied(value, "", 0))


def build_part(part: str, node: Any, source: str, trust: Trust) -> Any:
    """Build the object that a config from a file names, from allowed classes with valid arguments.

    Args:
        part: a key of `ROOMS`. node: a `plain` copy. source: for messages.

    Raises:
        UserError: a class that is not allowed, a reference, or arguments that do not fit.
    """
    check_part(part, node, source, trust)
    try:
        return build(part, node, _finder(part, trust))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def check_part(part: str, node: Any, source: str, trust: Trust) -> None:
    """Make the checks of `build_part` without building anything."""
    try:
        if not isinstance(node, dict) or "_target_" not in node:
            raise UserError(f"{part}: has no _target_ to build")
        _refuse_references(part, node)
        check_node(part, node, _finder(part, trust))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def find_class(part: str, target: Any, trust: Trust) -> Any:
    """Return the class of this path, if a file may name it for this part.

    Raises:
        UserError: it may not.
    """
    return _finder(part, trust)(part, target)


def _refuse_references(path: str, node: Any) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key.startswith("_") and key != "_target_":
                raise UserError(f"{path}.{key}: a file must not set this; refused")
            _refuse_references(f"{path}.{key}", value)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _refuse_references(f"{path}[{i}]", value)
    elif isinstance(node, str) and REFERENCE in node:
        raise UserError(f"{path}={shown(node)!r}: a file must not contain references; refused")


def _finder(part: str, trust: Trust) -> Find:
    room = ROOMS[part]
    modules = room.modules + trust.modules

    def find(path: str, target: Any) -> type:
        found: Any = None
        module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
        if _below(module, modules):
            with suppress(ImportError):
                found = getattr(importlib.import_module(module), name, None)
            # The class must be defined there, not only imported there.
            own = isinstance(found, type) and _below(found.__module__, modules)
            if own and (issubclass(found, room.base) or not _below(found.__module__, room.modules)):
                return found
        raise UserError(
            f"{path}._target_={shown(target)!r}: its config asks to call something that is not a class of "
            f"{', '.join(room.modules)}; refused (for a module of your own: trust=[its_name])"
        )

    return find


def _below(module: str, modules: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in modules)


@contextmanager
def bounded_modules(limits: Limits, tensors: int, values: int | None = None) -> Iterator[None]:
    """Limit the parameters, values and submodules that modules built inside the block may get.

    Args:
        tensors: number of parameters in the file. values: number of values in all of them together; None
            for `limits.bytes`.
    """
    left = {
        f"more than the {tensors} tensors that the file names": min(tensors, limits.tensors),
        "more values than limits.bytes or the format allow": limits.bytes
        if values is None
        else values,
        f"more parts than limits.blocks={limits.blocks} allows": limits.blocks * MODULES_A_BLOCK,
    }
    of_tensors, of_values, of_parts = left

    def take(what: str, count: int) -> None:
        left[what] -= count
        if left[what] < 0:
            raise UserError(f"its config asks for {what}")

    def parameter_added(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            if parameter.numel() > limits.tensor_values:
                raise UserError(
                    f"its config asks for a tensor of {parameter.numel()} values; "
                    f"limits.tensor_values={limits.tensor_values}"
                )
            take(of_tensors, 1)
            take(of_values, parameter.numel())

    def module_added(module: nn.Module, name: str, part: nn.Module | None) -> None:
        take(of_parts, 1)

    handles = (
        register_module_parameter_registration_hook(parameter_added),
        register_module_module_registration_hook(module_added),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
