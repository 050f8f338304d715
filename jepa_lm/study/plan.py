"""Turn a command line into the jobs of a sweep or study, before the first of them starts.

sweep: every combination of the swept values; seeds of one combination form a group
study: every combination is a treatment, and each treatment gets its arms
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jepa_lm.study.arms import (
    ArmSpec,
    Match,
    below,
    check_budget,
    differences,
    read_arms,
)
from jepa_lm.study.ladder import climbed, on_ladder
from jepa_lm.study.losses import NODES, losses_of
from jepa_lm.study.manifest import Comparison, Group, Identity, Manifest
from jepa_lm.study.measure import FORMER_ESTIMANDS, Estimand
from jepa_lm.study.planned_arms import TREATMENT, ArmPlanner, RunFlops, arm_name
from jepa_lm.study.planner import Planner, slug
from jepa_lm.study.request import NONE, Compose, Request
from jepa_lm.study.roles import BASELINES
from jepa_lm.study.sequential import Seeds, check_seeds
from jepa_lm.utils.config import check_type, unknown_key
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.metrics import MetricName

CheckMetric = Callable[[Mapping[str, Any], str], None]
"""Raises a UserError if the data of a resolved config do not have a metric."""
METRIC = "metric"
SETTINGS = {
    "name": str,
    "match": Match,
    "metric": MetricName | None,
    "estimand": Estimand,
    "margin": float | None,
    "seeds": Seeds,
    "tuning": dict | None,
    "ladder": dict | None,
    "dry_run": bool,
    "arms": dict,
}
"""Settings of a study with their types."""


def plan_sweep(request: Request, compose: Compose, name: str) -> tuple[Manifest, dict[str, Any]]:
    """Plan every combination; combinations without an auxiliary loss are the controls of the others.

    Returns:
        The plan, and each job's resolved config by folder.

    Raises:
        UserError: weights are given, but no objective has a loss.
    """
    planner = Planner(compose)
    seeds = request.seeds(compose)
    inert: list[tuple[Group, Mapping[str, str]]] = []
    active: list[tuple[Group, Mapping[str, str]]] = []
    for cell in request.cells():
        composed = compose(request.fixed_with(cell))
        cell = planner.settle(cell, composed)
        if slug(cell) in planner.groups:
            continue
        group = planner.add(slug(cell), composed, seeds, settings=cell)
        weighed = any(losses_of(composed.resolved(seeds[0])).values())
        (active if weighed else inert).append((group, cell))
    comparisons = [
        Comparison(group.name, control.name, _role(control), _between(planner, group, control))
        for group, cell in active
        for control, other in inert
        if _matches(cell, other)
    ]
    return planner.manifest(request, name, "sweep", comparisons), planner.configs


def _role(control: Group) -> str:
    return "none" if control.settings.get("objective") == NONE else "weight_0"


def _matches(cell: Mapping[str, str], control: Mapping[str, str]) -> bool:
    """Return whether a cell and a control agree in all swept keys outside the objective."""
    return all(value == control.get(key) for key, value in cell.items() if not _of_loss(key))


def _of_loss(key: str) -> bool:
    return below(key, (*NODES, "objective"))


def _between(planner: Planner, one: Group, other: Group) -> dict[str, tuple[Any, Any]]:
    """Return the differences between the configs of two groups at their first common seed."""
    seed = next(s for s in one.runs if s in other.runs)
    return differences(planner.configs[other.runs[seed]], planner.configs[one.runs[seed]])


def plan_study(
    request: Request,
    compose: Compose,
    study: Mapping[str, Any],
    flops: RunFlops,
    tuned: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Manifest, dict[str, Any]]:
    """Plan the treatments of a study and their arms.

    Args:
        flops: counts the FLOPs per token of a run, for arms that spend as many as their treatment, and rungs.
        tuned: overrides that tuning has found, by the name of the group.

    Raises:
        UserError: an arm does not differ from its treatment in exactly what it declares, the budget does
            not fit `study.match`, or a setting is unknown.
    """
    estimand = study.get("estimand", "budget")
    study = {**study, "estimand": FORMER_ESTIMANDS.get(str(estimand), estimand)}
    for key, value in study.items():
        if key not in SETTINGS:
            raise unknown_key(f"study.{key}", [f"study.{k}" for k in SETTINGS], "a study")
        check_type(f"study.{key}", value, SETTINGS[key])
    margin = study.get("margin")
    if margin is not None and not 0 < margin < math.inf:
        raise UserError(f"study.margin={margin}: must be above 0, or null")
    request = on_ladder(judged_by(request, study.get("metric")), study)
    arms = read_arms(study["arms"])
    left_out = {
        name: "left out of this study" for name, arm in study["arms"].items() if arm is None
    }
    planner = Planner(compose)
    seeds = request.seeds(compose)
    check_seeds(study.get("seeds", "fixed"), len(seeds), study.get("metric"))
    arm_planner = ArmPlanner(planner, request, seeds, flops, tuned or {})
    comparisons: list[Comparison] = []
    identities: list[Identity] = []
    not_applicable: dict[str, dict[str, str]] = {}
    for cell in request.cells():
        composed = compose(request.fixed_with(cell))
        cell = planner.settle(cell, composed)
        if arm_name(cell, TREATMENT) in planner.groups:
            continue
        config = composed.resolved(seeds[0])
        check_budget(study["match"], config)
        _check_treatment(arms, composed.objective, config)
        treatment = arm_planner.treatment(cell, composed)
        match = study["match"]
        reasons = {arm.name: arm.why_not(composed.objective, config, match) for arm in arms}
        refused = {k: v for k, v in reasons.items() if v is not None}
        not_applicable[treatment.name] = {**refused, **left_out}
        if not any(arm.role in BASELINES and reasons[arm.name] is None for arm in arms):
            raise UserError(
                f"study.arms: no arm with role {', '.join(BASELINES)} applies to {treatment.name}; a study "
                "compares its treatment with the same run without the loss"
            )
        added: dict[str, Group] = {}
        for arm in arms:
            if reasons[arm.name] is None:
                added[arm.name] = arm_planner.arm(arm, cell, treatment)
        of_arms, of_runs = _held_against(planner, treatment, arms, added, seeds)
        comparisons += of_arms
        identities += of_runs
    manifest = planner.manifest(request, study["name"], "study", comparisons)
    manifest = replace(
        manifest,
        match=study["match"],
        metric=study.get("metric") or manifest.metric,
        estimand=study["estimand"],
        margin=margin,
        seeds=study.get("seeds", "fixed"),
        planned=tuple(map(str, seeds)),
        identities=tuple(identities),
        not_applicable=not_applicable,
    )
    return climbed(manifest, request, planner.configs, flops), planner.configs


def judged_by(request: Request, metric: str | None) -> Request:
    """Return the request with the metric of its verdicts for every run, unless it gives its runs another."""
    return request if metric is None else request.with_default(METRIC, metric)


def check_metrics(manifest: Manifest, configs: Mapping[str, Any], check: CheckMetric) -> None:
    """Check that the data of every job have the metrics that it and the verdicts go by.

    Raises:
        UserError: they do not.
    """
    known = set()
    for config in configs.values():
        for metric in {config["metric"], manifest.metric} - {None}:
            asked = metric, repr(config["data"]["corpus"])
            if asked not in known:
                check(config, metric)
                known.add(asked)


def _check_treatment(arms: Sequence[ArmSpec], objective: str, config: Mapping[str, Any]) -> None:
    """Check that a treatment is not one of its own controls.

    Raises:
        UserError: naming the key that makes it one.
    """
    roles, losses = {arm.role for arm in arms}, losses_of(config)
    if not losses and NONE in roles:
        raise UserError(
            "objective=none: is the control of this study; choose an objective to compare with it, such as "
            "objective=lewm"
        )
    if losses and not any(losses.values()) and "weight_0" in roles:
        raise UserError(
            f"{next(iter(losses))}.weight=0: is already an arm of this study; leave it out of the treatments "
            "(and of sweep=)"
        )


def _held_against(
    planner: Planner,
    treatment: Group,
    arms: Sequence[ArmSpec],
    added: Mapping[str, Group],
    seeds: Sequence[int],
) -> tuple[list[Comparison], list[Identity]]:
    """Return the comparisons of a treatment, and the pairs of runs that must be the same model."""
    comparisons: list[Comparison] = []
    identities: list[Identity] = []
    for arm in arms:
        if (group := added.get(arm.name)) is None:
            continue
        if arm.same_as is not None and (model := added.get(arm.same_as)) is not None:
            first = str(seeds[0])
            runs = (group.runs[first], model.runs[first])
            identities.append(
                Identity(
                    runs,
                    f"{group.name} must be the same model as {model.name}",
                    tuple(treatment.runs.values()),
                )
            )
        else:
            found = _between(planner, treatment, group)
            comparisons.append(Comparison(treatment.name, group.name, arm.role, found, arm.gate))
    return comparisons, identities
