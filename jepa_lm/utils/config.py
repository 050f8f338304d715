"""Checks of a composed config that Hydra does not make, run before any data is read.

Every node with a `_target_` is checked against the signature of the class it names: an unknown key
or a value of the wrong type gives one line with the key, the value and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.former_names import modern
from jepa_lm.utils.schema import TrainConfig

HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
SCALARS = (bool, int, float, str)
LONGEST_VALUE = 100
"""Maximum number of characters of a value in a message."""
OURS_IN_TRAINER = {
    "max_steps": int | None,
    "max_time": float | None,
    "val_check_interval": int | None,
}
"""Settings under `trainer` that we read before Lightning's Trainer does."""
SETTINGS = ("data", "model", "jepa", "optimizer", "trainer")
"""Nodes that every training config has."""
REQUIRED = (*OURS_IN_TRAINER, "accelerator", "devices", "precision", "accumulate_grad_batches")
"""Settings of the trainer that may be null but must not be deleted."""


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers without interpolations, for checkpoints and loggers."""
    config = modern(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    assert isinstance(config, dict)
    return typing.cast(dict[str, Any], config)


def check_schema(config: Mapping[str, Any], schema: type, path: str = "") -> None:
    """Refuse keys that the typed schema does not have (`+key=value`) and missing ones (`~key`)."""
    known = {f.name: f.type for f in dataclasses.fields(schema)}
    for name in known:
        if name not in config:
            raise UserError(f"{path}{name}: missing; remove ~{path}{name} from the command")
    for key, value in config.items():
        if key not in known:
            raise unknown_key(f"{path}{key}", [f"{path}{name}" for name in known], "the config")
        nested = typing.get_type_hints(schema)[str(key)]
        if dataclasses.is_dataclass(nested):
            assert isinstance(nested, type)
            check_schema(value, nested, f"{path}{key}.")


def check(config: Mapping[str, Any]) -> None:
    """Check a resolved training config.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    check_schema(config, TrainConfig)
    for name in SETTINGS:
        check_type(name, config.get(name), Mapping)
    for key in REQUIRED:
        if key not in config["trainer"]:
            raise UserError(f"trainer.{key}: missing; null means no limit")
    check_type("jepa.weight", config["jepa"].get("weight", 0.0), float)
    trainer = dict(config["trainer"])
    for key, hint in OURS_IN_TRAINER.items():
        check_type(f"trainer.{key}", trainer.pop(key, None), hint)
    for name, node in {**config, "trainer": trainer}.items():
        check_node(name, node)
    if "_target_" not in config["jepa"]:
        for key in config["jepa"].keys() - {"weight"}:
            raise unknown_key(f"jepa.{key}", ["jepa.weight"], "objective=none")


Find = Callable[[str, Any], Any]
"""Maps the path of a node and its `_target_` to the class or function to call."""


def find_anything(path: str, target: Any) -> Any:
    """Return what `_target_` names, from any module: for configs that the user wrote.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return get_object(target)
    except Exception as error:  # importing runs the user's own code
        raise UserError(
            f"{path}._target_={shown(target)}: cannot be imported ({shown(error)})"
        ) from error


def build(path: str, node: Any, find: Find = find_anything) -> Any:
    """Build the object that a node names, with everything below it.

    Strings are used literally: references were resolved when the config was composed.

    Args:
        path: the node's key, for messages. node: plain containers with a `_target_`.
        find: looks up the targets, and decides which ones are allowed.

    Raises:
        UserError: a part refused its settings; the message starts with the part's key.
    """

    def made(part: str, value: Any) -> Any:
        if isinstance(value, list):
            return [made(f"{part}[{i}]", entry) for i, entry in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        inner = made if value.get("_recursive_", True) else lambda _, below: below
        entries = {
            key: inner(f"{part}.{key}", below)
            for key, below in value.items()
            if key not in HYDRA_KEYS
        }
        if "_target_" not in value:
            return entries
        target = find(part, value["_target_"])
        positional = inner(f"{part}._args_", list(value.get("_args_", ())))
        if value.get("_partial_"):
            return functools.partial(target, *positional, **entries)
        try:
            return target(*positional, **entries)
        except UserError as error:
            # The message may already start with the key, added by this part or one below it.
            named = str(error).startswith((f"{path}.", f"{path}:", f"{path}="))
            raise type(error)(f"{error}" if named else f"{part}: {error}") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"{part}: {value['_target_']} cannot be created ({type(error).__name__}: {shown(error)})"
            ) from error

    return made(path, node)


def check_node(path: str, node: Any, find: Find = find_anything) -> None:
    """Check a node and everything below it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(path, node, find)
        for key, value in node.items():
            check_node(f"{path}.{key}", value, find)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            check_node(f"{path}[{i}]", value, find)


def _check_call(path: str, node: Mapping[str, Any], find: Find) -> None:
    """Check a node's keys and values against the signature of its target."""
    target = find(path, node["_target_"])
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    try:
        called = vars(target).get("__init__", target) if isinstance(target, type) else target
        hints = typing.get_type_hints(called)
    except (NameError, TypeError):
        hints = {}
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key not in parameters:
            known = [f"{path}.{name}" for name in parameters if name != "self"]
            raise unknown_key(f"{path}.{key}", known, node["_target_"].rpartition(".")[2])
        hint = hints.get(key, Any)
        check_type(f"{path}.{key}", value, hint)
        if isinstance(value, Mapping) and "_target_" in value and not value.get("_partial_"):
            made = find(f"{path}.{key}", value["_target_"])
            if not _makes(made, hint):
                raise UserError(
                    f"{path}.{key}._target_={shown(value['_target_'])}: not of type {_spell(hint)}, which "
                    f"{node['_target_'].rpartition('.')[2]} expects"
                )
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        if required and name not in node and not node.get("_partial_"):
            raise UserError(f"{path}.{name} is not set, and {node['_target_']} needs it")


def unknown_key(key: str, known: Iterable[str], where: str) -> UserError:
    """Return the error for an unknown key, with the nearest known key."""
    known, key = list(known), shown(key)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:12])}"
    return UserError(f"{key}: {where} has no such setting; {hint}")


def check_type(key: str, value: Any, hint: Any) -> None:
    """Raise UserError unless a value fits a type hint; hints about other classes pass."""
    if not _fits(value, hint):
        raise UserError(f"{key}={shown(value)}: expected {_spell(hint)}")
    if isinstance(value, Mapping) and "_target_" not in value:
        for part, entry in value.items():
            check_type(f"{key}.{part}", entry, _of_entries(hint))


def shown(value: Any) -> str:
    """Return a value as text for a message, cut if it is long."""
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return any(type(value) is type(option) for option in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is float:
        a_number = isinstance(value, int | float) and not isinstance(value, bool)
        return a_number and abs(value) <= sys.float_info.max  # excludes NaN and infinity
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    container = origin or hint
    if container in (list, Sequence, tuple):
        entry = next(iter(typing.get_args(hint)), Any)
        return isinstance(value, list | tuple) and all(_fits(v, entry) for v in value)
    if container in (dict, Mapping):
        return isinstance(value, Mapping)
    ours = getattr(hint, "__module__", "").startswith(("jepa_lm", "torch.nn"))
    return not (ours and (value is None or isinstance(value, SCALARS)))


def _of_entries(hint: Any) -> Any:
    """Return the type hint of a mapping's values."""
    for option in (hint, *typing.get_args(hint)):
        if typing.get_origin(option) in (dict, Mapping):
            return typing.get_args(option)[1]
    return Any


def _makes(target: Any, hint: Any) -> bool:
    """Return whether a target can create what a hint asks for; True if that cannot be decided."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_makes(target, option) for option in typing.get_args(hint))
    if hint is Any or not isinstance(target, type) or not isinstance(hint, type):
        return True
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(target, name) for name in vars(hint) if not name.startswith("_"))
    return issubclass(target, hint)


def _spell(hint: Any) -> str:
    options = (
        typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    )
    if options:
        return " or ".join(_spell(option) for option in options)
    if hint is type(None):
        return "null"
    container = typing.get_origin(hint) or hint
    if container in (list, Sequence, tuple):
        entry = next(iter(typing.get_args(hint)), Any)
        return "a list" if entry is Any else f"a list, each entry {_spell(entry)}"
    if container in (dict, Mapping):
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
