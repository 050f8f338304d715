"""Arms of a study: what each changes in the treatment, and the check that it changes nothing else.

An arm is a few overrides that are appended to everything the user typed. The parts of the command line that
it replaces are removed first, so `jepa.weight=0.3` does not undo a control with `jepa.weight=0` (Hydra lets
the command line win over any file). Before anything trains, the resolved configs of arm and treatment must
differ in exactly the keys that the arm declares.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jepa_lm.utils.config import check_type, unknown_key
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.nested import at, flat
from jepa_lm.utils.provenance import relevant

NAME = re.compile(r"\w[\w.-]{0,59}", re.ASCII)
STEPS, EPOCHS, INTERVAL = "trainer.max_steps", "trainer.max_epochs", "trainer.val_check_interval"
Match = Literal["steps", "flops", "time"]
"""What the arms of a study have in common, see `check_budget`."""
ABSENT = "(absent)"
"""Placeholder for the value of a key that only the other side has."""


@dataclass(frozen=True)
class ArmSpec:
    """A variant of the treatment, as written in YAML below `study.arms`."""

    name: str
    role: str
    """Its role in the argument: weight_0, none and control are baselines, placebo is the placebo,
    regularizers_only the objective without its prediction, rival and rival_equal_flops a loss on tokens; any
    other word is only shown in the report."""
    says: str = ""
    set: list[str] = field(default_factory=list)
    """Overrides, placed last on the job's command line."""
    replaces: list[str] = field(default_factory=list)
    """Keys and groups that are removed from the command line, with everything below them; keys of `set`
    always are."""
    changes: list[str] = field(default_factory=list)
    """Keys of the resolved config that differ from the treatment's, each with everything below it."""
    scale: dict[str, float] = field(default_factory=dict)
    """Numbers of the treatment's config that the arm multiplies; integers stay integers by rounding."""
    equal_flops: bool = False
    """Change `trainer.max_steps`, so that the arm spends the FLOPs of the treatment, and
    `trainer.val_check_interval` with it, so that it is validated as often."""
    match: str | None = None
    """The `study.match` of the studies that have this arm; null for all."""
    gate: bool | None = None
    """Whether the treatment must be better than this arm to help; null: if its role is placebo,
    regularizers_only or rival."""
    seed_offset: int = 0
    """Number added to the seeds, for the same config with other random draws."""
    only: list[str] = field(default_factory=list)
    """Objectives that the arm applies to; empty for all."""
    without: list[str] = field(default_factory=list)
    """Objectives that the arm does not apply to."""
    needs: str | None = None
    """A key of the treatment's config without which there is nothing to change."""
    lacks: str | None = None
    """A key that the treatment's config must not have."""
    same_as: str | None = None
    """The arm that it must equal bit for bit; it runs on the first seed alone, to prove that."""

    def why_not(self, objective: str, config: Mapping[str, Any], match: str) -> str | None:
        """Return why the arm does not apply to a treatment, or None if it applies."""
        if self.match is not None and match != self.match:
            return f"only with study.match={self.match}"
        if self.only and objective not in self.only:
            return f"only for {', '.join(self.only)}"
        if objective in self.without:
            return f"not for {objective}"
        if self.needs is not None and not at(config, *self.needs.split(".")):
            return f"nothing to change: no {self.needs}"
        if self.lacks is not None and at(config, *self.lacks.split(".")):
            return f"not beside {self.lacks}"
        if self.equal_flops and config["trainer"]["max_steps"] is None:
            return "equal FLOPs need trainer.max_steps"
        return None

    def declared(self) -> list[str]:
        """Return the keys at which the arm says that it differs from its treatment."""
        return [*self.changes, *self.scale, *(["seed"] if self.seed_offset else [])]

    def replaced(self) -> list[str]:
        """Return the keys that are removed from the command line."""
        return [*self.replaces, *(text.lstrip("+~").partition("=")[0] for text in self.set)]


def read_arms(node: Mapping[str, Any]) -> list[ArmSpec]:
    """Read the arms below `study.arms`; an arm set to null is left out.

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
                f"{path[:100]}: an arm has a name of up to 60 letters, digits, dots, - and _, which names "
                "its folder"
            )
        if not isinstance(settings, Mapping) or "role" not in settings:
            raise UserError(f"{path}: needs a role, such as none, weight_0 or placebo")
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
        arms[i] = replace(
            arm, same_as=None
        )  # the other arm is left out, so this one runs on every seed
    return arms


def below(key: str, prefixes: Iterable[str]) -> bool:
    """Return whether a dotted key is one of the prefixes or lies below one of them."""
    return any(key == p or key.startswith((f"{p}.", f"{p}/", f"{p}@")) for p in prefixes)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences between two resolved configs that affect the computation.

    Returns:
        The values of both sides by dotted key.
    """
    a, b = flat(relevant(one)), flat(relevant(other))
    keys = [*a, *(key for key in b if key not in a)]
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_budget(match: Match, config: Mapping[str, Any]) -> None:
    """Check that the budget gives all arms the same steps or the same time, as `match` says.

    With `flops`, arms have the same steps, and the arms that are only in such studies the same FLOPs.

    Raises:
        UserError: the budget does not fit `match`.
    """
    trainer = config["trainer"]
    if match in ("steps", "flops") and (
        trainer["max_time"] is not None or trainer["max_steps"] is None
    ):
        raise UserError(
            f"study.match={match}: needs trainer.max_steps and trainer.max_time=null, but they are "
            f"{_yaml(trainer['max_steps'])} and {_yaml(trainer['max_time'])}; study.match=time compares "
            "after the same time"
        )
    if match == "time" and (trainer["max_time"] is None or trainer["max_steps"] is not None):
        raise UserError(
            f"study.match=time: needs trainer.max_time and trainer.max_steps=null, but they are "
            f"{_yaml(trainer['max_time'])} and {_yaml(trainer['max_steps'])}; study.match=steps compares "
            "after the same steps"
        )


def check_declared(arm: ArmSpec, found: Mapping[str, tuple[Any, Any]]) -> None:
    """Check that an arm differs from its treatment in every key that it declares and in no other.

    Raises:
        UserError: naming the arm, the key and the values.
    """
    declared = arm.declared()
    if arm.equal_flops:
        declared += [key for key in (STEPS, EPOCHS, INTERVAL) if key in found]
    for key, (theirs, ours) in found.items():
        if not below(key, declared) and not (arm.seed_offset and key.endswith(".seed")):
            raise UserError(
                f"study.arms.{arm.name}: differs from the treatment in {key} ({theirs} there, {ours} "
                f"here), which study.arms.{arm.name}.changes does not declare"
            )
    for key in declared:
        if not any(below(k, [key]) for k in found):
            raise UserError(
                f"study.arms.{arm.name}: declares a change of {key}, but its resolved config has the "
                "treatment's value there; arm and treatment would be the same run"
            )


def describe_differences(found: Mapping[str, tuple[Any, Any]], most: int = 6) -> str:
    """Describe differences in a phrase, such as `trainer.max_steps was 100, now 200`."""
    told = [f"{key} was {a}, now {b}" for key, (a, b) in list(found.items())[:most]]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(told) + more


def _yaml(value: Any) -> Any:
    """Return a value as it is written in YAML."""
    return "null" if value is None else value
