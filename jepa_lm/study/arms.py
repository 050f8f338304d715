"""Arms of a study: what each changes about the treatment, and the proof that it changes nothing else.

An arm is a few overrides, put on after everything the user typed; what it replaces of the command line
is taken out first, so `jepa.weight=0.3` does not undo a control with `jepa.weight=0` (Hydra lets the
command line win over any file). Before anything trains, the resolved configs of arm and treatment have
to differ in exactly the keys that the arm declares.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jepa_lm.utils.config import check_type, unknown_key
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.provenance import relevant

NAME = re.compile(r"\w[\w.-]{0,59}", re.ASCII)
ABSENT = "(absent)"
"""In the place of a key that only one side has."""


@dataclass(frozen=True)
class ArmSpec:
    """A variant of the treatment, as YAML gives it below `study.arms`."""

    name: str
    role: str
    """Its part in the argument: weight_0, none and control are baselines, placebo is one; any other word
    is told in the report."""
    says: str = ""
    set: list[str] = field(default_factory=list)
    """Overrides, last on the job's command line."""
    replaces: list[str] = field(default_factory=list)
    """Keys and groups of the command line that give way, with all below them; those of `set` always do."""
    changes: list[str] = field(default_factory=list)
    """Keys of the resolved config that differ from the treatment's, each with all below it."""
    scale: dict[str, float] = field(default_factory=dict)
    """Numbers of the treatment's config that the arm multiplies, rounded where they were whole."""
    seed_offset: int = 0
    """Added to the seeds: the same config with other draws."""
    only: list[str] = field(default_factory=list)
    """Objectives it is for; empty for all."""
    without: list[str] = field(default_factory=list)
    """Objectives it is not for."""
    needs: str | None = None
    """A key of the treatment's config without which there is nothing to change."""
    same_as: str | None = None
    """The arm that it has to equal bit for bit: it runs on the first seed alone, to prove that."""

    def why_not(self, objective: str, config: Mapping[str, Any]) -> str | None:
        """Why the arm does not apply to a treatment; None where it does."""
        if self.only and objective not in self.only:
            return f"only for {', '.join(self.only)}"
        if objective in self.without:
            return f"not for {objective}"
        if self.needs is not None and not _value(config, self.needs):
            return f"nothing to change: no {self.needs}"
        return None

    def replaced(self) -> list[str]:
        """Keys that are taken off the command line."""
        return [*self.replaces, *(text.lstrip("+~").partition("=")[0] for text in self.set)]


def read_arms(node: Mapping[str, Any]) -> list[ArmSpec]:
    """The arms below `study.arms`; one set to null is left out.

    Raises:
        UserError: naming the key.
    """
    known = {key: hint for key, hint in typing.get_type_hints(ArmSpec).items() if key != "name"}
    arms = []
    for name, settings in node.items():
        path = f"study.arms.{name}"
        if settings is None:
            continue
        if not NAME.fullmatch(name):
            raise UserError(
                f"{path[:100]}: an arm has a name of up to 60 letters, digits, dots, - and _, like its folder"
            )
        if not isinstance(settings, Mapping) or "role" not in settings:
            raise UserError(f"{path}: needs at least a role, such as none, weight_0 or placebo")
        for key, value in settings.items():
            if key not in known:
                raise unknown_key(f"{path}.{key}", [f"{path}.{k}" for k in known], "an arm")
            check_type(f"{path}.{key}", value, known[key])
        arms.append(ArmSpec(name=name, **settings))
    names = {arm.name for arm in arms}
    for i, arm in enumerate(arms):
        if arm.same_as is None or arm.same_as in names:
            continue
        if arm.same_as not in node:
            raise UserError(f"study.arms.{arm.name}.same_as={arm.same_as}: there is no such arm")
        arms[i] = replace(arm, same_as=None)  # that one was left out: nothing else stands for it
    return arms


def below(key: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted key is one of these or lies below one of them."""
    return any(key == p or key.startswith((f"{p}.", f"{p}/", f"{p}@")) for p in prefixes)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two resolved configs differ in what is computed: values of both sides by dotted key."""
    a, b = flat(relevant(one)), flat(relevant(other))
    keys = [*a, *(key for key in b if key not in a)]
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_budget(match: str, config: Mapping[str, Any]) -> None:
    """Arms are compared after the same steps, or after the same time.

    Raises:
        UserError: a budget that does not say so.
    """
    trainer = config["trainer"]
    if match == "steps" and (trainer["max_time"] is not None or trainer["max_steps"] is None):
        raise UserError(
            f"study.match=steps: needs trainer.max_steps and trainer.max_time=null, and they are "
            f"{_yaml(trainer['max_steps'])} and {_yaml(trainer['max_time'])}; study.match=time compares "
            "after the same time"
        )
    if match == "time" and (trainer["max_time"] is None or trainer["max_steps"] is not None):
        raise UserError(
            f"study.match=time: needs trainer.max_time and trainer.max_steps=null, and they are "
            f"{_yaml(trainer['max_time'])} and {_yaml(trainer['max_steps'])}; study.match=steps compares "
            "after the same steps"
        )
    if match not in ("steps", "time"):
        raise UserError(f"study.match={match}: one of steps, time")


def check_declared(arm: ArmSpec, found: Mapping[str, tuple[Any, Any]]) -> None:
    """An arm differs from its treatment in what it declares, in all of it, and in nothing else (trap 37).

    Raises:
        UserError: naming arm, key and values.
    """
    declared = [*arm.changes, *arm.scale, *(["seed"] if arm.seed_offset else [])]
    for key, (theirs, ours) in found.items():
        if not below(key, declared) and not (arm.seed_offset and key.endswith(".seed")):
            raise UserError(
                f"study.arms.{arm.name}: differs from the treatment in {key} ({theirs} there, {ours} "
                f"here), which study.arms.{arm.name}.changes does not declare"
            )
    for key in declared:
        if not any(below(k, [key]) for k in found):
            raise UserError(
                f"study.arms.{arm.name}: declares a change of {key}, but the resolved config is the "
                "treatment's there; arm and treatment would be the same run"
            )


def _value(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def describe_differences(found: Mapping[str, tuple[Any, Any]], most: int = 6) -> str:
    """In a phrase: `trainer.max_steps was 100, now 200`."""
    told = [f"{key} was {a}, now {b}" for key, (a, b) in list(found.items())[:most]]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(told) + more


def _yaml(value: Any) -> Any:
    """As a user writes it."""
    return "null" if value is None else value
