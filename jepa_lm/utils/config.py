"""Checks of a composed config that Hydra does not make, run before any data is read.

Every node with a `_target_` is checked against the signature of the class it names: an unknown key
or a value of the wrong type gives one line with the key, the value and what would be right.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from jepa_lm.utils.epochs import with_steps
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.former_names import modern
from jepa_lm.utils.kinds import (
    Count,
    Kind,
    NotNegative,
    Positive,
    bounded_hints,
    check_kind,
    check_type,
    entries_of,
    shown,
    spell,
)
from jepa_lm.utils.schema import Precision, TrainConfig
from jepa_lm.utils.signatures import Signature, inspected, table
from jepa_lm.utils.unknown_keys import LOSSES, no_part, of_another, unknown_key, without_loss

HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
TRAINER = {
    "max_steps": Count | None,
    "max_time": Positive | None,
    "max_epochs": Positive | None,
    "val_check_interval": Count | None,
    "log_every_n_steps": Count | None,
    "accumulate_grad_batches": Count,
    "gradient_clip_val": NotNegative | None,
    "gradient_clip_algorithm": Literal["norm"] | None,
    "precision": Precision,
}
"""Settings under `trainer` whose types or ranges are not those of Lightning's Trainer."""
SETTINGS = ("data", "model", "jepa", "tokens", "optimizer", "trainer")
"""Nodes that every training config has."""
REQUIRED = (
    "max_steps",
    "max_time",
    "val_check_interval",
    "accelerator",
    "devices",
    "precision",
    "accumulate_grad_batches",
)
"""Settings of the trainer that may be null but must not be deleted."""


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers without interpolations, for checkpoints and loggers.

    Raises:
        UserError: see `with_steps`.
    """
    composed = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    config = modern(composed, composed=True)
    assert isinstance(config, dict)
    return with_steps(typing.cast(dict[str, Any], config))


def check_schema(config: Mapping[str, Any], schema: type, path: str = "") -> None:
    """Check a config against a typed schema, whose types OmegaConf has checked before.

    Raises:
        UserError: an unknown key (`+key=value`), a missing one (`~key`), or a value out of its range.
    """
    known = {f.name: f.type for f in dataclasses.fields(schema)}
    for name in known:
        if name not in config:
            raise UserError(f"{path}{name}: missing; remove ~{path}{name} from the command")
    kinds, hints = bounded_hints(schema), typing.get_type_hints(schema)
    for key, value in config.items():
        if key not in known:
            raise unknown_key(f"{path}{key}", [f"{path}{name}" for name in known], "the config")
        if key in kinds:
            check_kind(f"{path}{key}", value, kinds[key])
        if dataclasses.is_dataclass(nested := hints[key]):
            assert isinstance(nested, type)
            check_schema(value, nested, f"{path}{key}.")


def check(config: Mapping[str, Any], *, imports: bool = True) -> None:
    """Check a resolved training config.

    Args:
        imports: see `check_node`; without, nothing is imported, which takes a tenth of the time.

    Raises:
        UserError: an unknown key, or a value out of its range or of the wrong type.
    """
    check_schema(config, TrainConfig)
    for name in SETTINGS:
        check_type(name, config.get(name), Mapping)
    for key in REQUIRED:
        if key not in config["trainer"]:
            raise UserError(f"trainer.{key}: missing; null means no limit")
    for name in LOSSES:
        check_type(f"{name}.weight", config[name].get("weight", 0.0), NotNegative)
    trainer = dict(config["trainer"])
    for key, hint in TRAINER.items():
        if key in trainer:
            check_type(f"trainer.{key}", trainer.pop(key), hint)
    for name, node in {**config, "trainer": trainer}.items():
        check_node(name, node, imports=imports)
    for name in LOSSES:
        if "_target_" not in config[name]:
            instead = name == "jepa" and "_target_" in config["tokens"]
            for key in config[name].keys() - {"weight"}:
                value = config[name][key]
                raise without_loss(f"{name}.{key}", value, predicts_tokens=instead)


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
            said = str(error)
            if not said.startswith((f"{path}.", f"{path}:", f"{path}=")):
                said = f"{part}.{said}" if said.partition("=")[0] in entries else f"{part}: {said}"
            raise type(error)(said) from error
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"{part}: {value['_target_']} cannot be created ({type(error).__name__}: {shown(error)})"
            ) from error

    return made(path, node)


def check_node(path: str, node: Any, find: Find = find_anything, *, imports: bool = True) -> None:
    """Check a node and everything below it.

    Args:
        find: looks up the targets; one of your own is asked about every target.
        imports: also check targets that are not in the table of signatures, by importing them.

    Raises:
        UserError: an unknown key, a value out of its range or of the wrong type, or a missing one.
    """

    def look(part: str, target: Any) -> Signature | None:
        known = table().get(target) if isinstance(target, str) and find is find_anything else None
        return inspected(find(part, target)) if known is None and imports else known

    def below(part: str, value: Any) -> None:
        if isinstance(value, Mapping):
            if "_target_" in value and (signature := look(part, value["_target_"])) is not None:
                _check_call(part, value, signature, look)
            for key, entry in value.items():
                below(f"{part}.{key}", entry)
        elif isinstance(value, list):
            for i, entry in enumerate(value):
                below(f"{part}[{i}]", entry)

    below(path, node)


Look = Callable[[str, Any], Signature | None]


def _check_call(path: str, node: Mapping[str, Any], signature: Signature, look: Look) -> None:
    """Check a node's keys and values against the signature of its target."""
    if signature.open:
        return
    caller = node["_target_"].rpartition(".")[2]
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key not in signature.settings:
            known = [f"{path}.{name}" for name in signature.settings]
            raise of_another(path, key, signature, caller) or unknown_key(
                f"{path}.{key}", known, caller
            )
        if (error := no_part(f"{path}.{key}", value, signature.settings[key])) is not None:
            raise error
        check_kind(f"{path}.{key}", value, signature.settings[key])
        _check_parts(f"{path}.{key}", value, signature.settings[key], caller, look)
    for name in signature.required:
        if name not in node and not node.get("_partial_"):
            raise UserError(f"{path}.{name} is not set, and {node['_target_']} needs it")


def _check_parts(key: str, value: Any, kind: Kind, caller: str, look: Look) -> None:
    """Check that the nodes in a value make the parts that its kind asks for."""
    if isinstance(value, list):
        for i, entry in enumerate(value):
            _check_parts(f"{key}[{i}]", entry, entries_of(kind, "list"), caller, look)
    elif isinstance(value, Mapping) and "_target_" not in value:
        for name, entry in value.items():
            _check_parts(f"{key}.{name}", entry, entries_of(kind, "mapping"), caller, look)
    elif isinstance(value, Mapping) and not value.get("_partial_"):
        made = look(key, value["_target_"])
        if made is not None and not made.fits(kind):
            raise UserError(
                f"{key}._target_={shown(value['_target_'])}: not of type {spell(kind)}, which {caller} "
                "expects"
            )
