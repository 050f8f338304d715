"""The arms of a study: each is its treatment's command line with the few overrides that it declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jepa_lm.study.arms import EPOCHS, INTERVAL, STEPS, ArmSpec, below, check_declared, differences
from jepa_lm.study.manifest import Group
from jepa_lm.study.planner import Planner, slug
from jepa_lm.study.request import SEED, Composed, Request
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.nested import flat
from jepa_lm.utils.values import check_seed

RunFlops = Callable[[Mapping[str, Any]], float]
"""Returns the FLOPs of a run per token, by its resolved config."""
TREATMENT = "treatment"
TUNED = "with its best draw"
"""What is said of a treatment that is tuned."""


@dataclass(frozen=True)
class ArmPlanner:
    """Plans the groups of a study.

    Args:
        planner: collects jobs and groups. request: the command line. seeds: of every group.
        flops: counts the FLOPs per token of a run, for arms that spend as many as their treatment.
        tuned: overrides that tuning has found, by the name of the group.
    """

    planner: Planner
    request: Request
    seeds: Sequence[int]
    flops: RunFlops
    tuned: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def treatment(self, cell: Mapping[str, str], composed: Composed) -> Group:
        """Plan the treatment of a combination."""
        name = arm_name(cell, TREATMENT)
        says = TUNED if name in self.tuned else "as configured"
        composed = self._with_tuned(name, composed)
        return self.planner.add(name, composed, self.seeds, says=says, settings=cell)

    def arm(self, arm: ArmSpec, cell: Mapping[str, str], treatment: Group) -> Group:
        """Plan an arm, and compare its config with the treatment's."""
        theirs = self.planner.configs[treatment.runs[str(self.seeds[0])]]
        scaled = _scaled(arm, theirs)
        gone = [*arm.replaced(), *arm.scale]
        left = {key: value for key, value in cell.items() if not below(key, gone)}
        # A scaled value still distinguishes this treatment's arm from another treatment's.
        named = {key: value for key, value in cell.items() if not below(key, arm.replaced())}
        name = arm_name(named, arm.name)
        words = [*self.request.fixed_with(left, gone), *arm.set, *scaled]
        composed = self.planner.compose(words)
        if arm.equal_flops:
            composed = self.planner.compose([*words, *self._at_equal_flops(composed, theirs)])
        composed = self._with_tuned(name, composed)
        for seed in self.seeds:
            check_seed(
                f"study.arms.{arm.name}.seed_offset={arm.seed_offset}: {SEED}",
                seed + arm.seed_offset,
            )
        found = differences(theirs, composed.resolved(self.seeds[0] + arm.seed_offset))
        tuned = self._keys_tuned(name, treatment.name)
        ours = {k: pair for k, pair in found.items() if k not in tuned or below(k, arm.declared())}
        check_declared(arm, ours)
        return self.planner.add(
            name,
            composed,
            self.seeds[:1] if arm.same_as is not None else self.seeds,
            says=arm.says,
            settings=left,
            offset=arm.seed_offset,
        )

    def _with_tuned(self, name: str, composed: Composed) -> Composed:
        words = self.tuned.get(name)
        return self.planner.compose([*composed.words, *words]) if words else composed

    def _keys_tuned(self, *groups: str) -> set[str]:
        """Return the keys in which tuning may have made groups differ."""
        return {word.partition("=")[0] for name in groups for word in self.tuned.get(name, ())}

    def _at_equal_flops(self, composed: Composed, treatment: Mapping[str, Any]) -> Iterator[str]:
        """Yield the overrides with which an arm spends the FLOPs of its treatment.

        It is validated as often: of more validations the best would be better by chance alone.
        """
        ratio = self.flops(treatment) / self.flops(composed.resolved(composed.seed))
        trainer = treatment["trainer"]
        steps = max(1, round(trainer["max_steps"] * ratio))
        yield f"{STEPS}={steps}"
        if trainer.get("max_epochs") is not None:
            yield f"{EPOCHS}=null"
        if trainer["val_check_interval"] is not None:
            validations = math.ceil(trainer["max_steps"] / trainer["val_check_interval"])
            yield f"{INTERVAL}={math.ceil(steps / validations)}"


def _scaled(arm: ArmSpec, treatment: Mapping[str, Any]) -> Iterator[str]:
    """Yield the overrides that multiply the treatment's numbers.

    Raises:
        UserError: there is no number.
    """
    values = flat(treatment)
    for key, factor in arm.scale.items():
        value = values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"study.arms.{arm.name}.scale.{key}: {key} is {value}, not a number")
        yield f"{key}={round(value * factor) if isinstance(value, int) else value * factor}"


def arm_name(cell: Mapping[str, str], arm: str) -> str:
    """Return the name of an arm's group, which is its folder."""
    return f"{slug(cell)}/{arm}" if cell else arm
