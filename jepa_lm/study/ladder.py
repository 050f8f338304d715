"""The ladder of a study: the sizes and budgets at which its treatments and their arms run, smallest first.

A rung is a few overrides, planned like another swept value: each has its own treatments and arms, and is
compared within itself. Its compute is that of the baseline's run, counted, so treatment and baseline have one
place on the axis, whatever the objective costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from jepa_lm.study.arms import NAME, below
from jepa_lm.study.manifest import RUNG, Manifest, Rung
from jepa_lm.study.planned_arms import RunFlops
from jepa_lm.study.request import OF_THE_SWEEP, SEED, Request
from jepa_lm.utils.config import check_type
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.metrics import METRICS
from jepa_lm.utils.quoting import one_line

FEWEST_RUNGS = 3
"""Rungs that a trend needs: two leave nothing to see whether a line fits."""
NOT_OF_A_RUN = (*OF_THE_SWEEP, "hydra", SEED)
"""Keys that a rung cannot set."""


def on_ladder(request: Request, study: Mapping[str, Any]) -> Request:
    """Return the request with the rungs of the study's ladder; without one, the request itself.

    Args:
        study: settings of the study; a rung set to null is left out.

    Raises:
        UserError: a rung cannot be read or sets what the command line sets, there are fewer than three, or
            the study has no equal steps or is looked at more than once.
    """
    ladder = {
        name: tuple(_override(name, word, request) for word in _words(name, node))
        for name, node in (study.get("ladder") or {}).items()
        if node is not None
    }
    if study.get("ladder") is None:
        return request
    if len(ladder) < FEWEST_RUNGS:
        raise UserError(
            f"study.ladder: has {len(ladder)} rungs ({', '.join(ladder) or 'none'}); a trend needs "
            f"{FEWEST_RUNGS} or more, and study.ladder=null is a study at one size"
        )
    for key, wrong in (("match", "time"), ("seeds", "sequential"), ("seeds", "open")):
        if study.get(key) == wrong:
            right = {"match": "steps or flops", "seeds": "fixed"}[key]
            raise UserError(f"study.{key}={wrong}: a study with a ladder needs study.{key}={right}")
    return replace(request, ladder=ladder)


def _words(name: str, node: Any) -> list[str]:
    """Return the overrides of a rung as they are written."""
    path = f"study.ladder.{name}"
    if not NAME.fullmatch(str(name)):
        raise UserError(
            f"{path[:100]}: a rung has a name of up to 60 letters, digits, dots, - and _, which names its "
            "folders"
        )
    check_type(path, node, list[str])
    if not node:
        raise UserError(
            f"{path}=[]: needs overrides that set its size and budget, such as model.dim=64"
        )
    return list(node)


def _override(name: str, word: str, request: Request) -> str:
    """Return an override of a rung, after it has been found to set what nothing else sets."""
    path = f"study.ladder.{name}"
    try:
        (parsed,) = OverridesParser.create().parse_overrides([word])
    except HydraException as error:
        raise UserError(
            f"{path}: {word!r} is no override such as model.dim=64 ({one_line(error)})"
        ) from error
    key = _key(parsed)
    if below(key, NOT_OF_A_RUN) or parsed.is_sweep_override():
        why = f"{key} is not of a rung" if below(key, NOT_OF_A_RUN) else "it has several values"
        raise UserError(
            f"{path}: {word}: {why}; a rung sets the size and budget of a run, one value a key"
        )
    if given := request.given(key):
        raise UserError(
            f"{given}: {path} sets {key} as well ({word}); leave it out of the command, or out of the rungs"
        )
    return word


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def climbs(plan: Manifest) -> list[dict[str, str]]:
    """Return the treatments that differ in the rung alone, by rung, smallest first."""
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for name in dict.fromkeys(c.of for c in plan.comparisons):
        settings = dict(plan.group(name).settings)
        if (rung := settings.pop(RUNG, None)) is not None:
            found.setdefault(tuple(settings.items()), {})[rung] = name
    order = [rung.name for rung in plan.ladder]
    if not order:
        return []
    return [{rung: of[rung] for rung in order if rung in of} for of in found.values()]


def climbed(
    plan: Manifest, request: Request, configs: Mapping[str, Any], flops: RunFlops
) -> Manifest:
    """Return the plan with its ladder, and the compute of each rung; without a ladder, the plan itself.

    Args:
        configs: resolved configs by folder. flops: counts the FLOPs per token of a run.

    Raises:
        UserError: the compute does not rise from rung to rung, or verdicts count seeds.
    """
    if not request.ladder:
        return plan
    for metric in {plan.metric, *(config["metric"] for config in configs.values())} - {None}:
        if METRICS[metric].bimodal:
            raise UserError(
                f"metric={metric}: counts seeds, which have no trend; study.ladder=null"
            )
    found: dict[str, dict[str, float]] = {name: {} for name in request.ladder}
    counted: dict[str, float] = {}
    for of in dict.fromkeys(c.of for c in plan.comparisons):
        baseline = plan.baseline(of)
        assert baseline is not None
        run = next(iter(plan.group(baseline).runs.values()))
        if run not in counted:
            counted[run] = _log_flops(configs[run], flops)
        found[plan.group(of).settings[RUNG]][baseline] = counted[run]
    ladder = tuple(Rung(name, words, found[name]) for name, words in request.ladder.items())
    plan = replace(plan, ladder=ladder)
    for climb in climbs(plan):
        _check_rising(climb, [plan.log_flops(of) for of in climb.values()])
    return plan


def _log_flops(config: Mapping[str, Any], flops: RunFlops) -> float:
    """Return the FLOPs of a run: those per token times its tokens; their logarithm to the base 10."""
    tokens = config["trainer"]["max_steps"] * config["data"]["batch_tokens"]
    return math.log10(flops(config) * tokens)


def _check_rising(climb: Iterable[str], log_flops: Sequence[float]) -> None:
    for (lower, x), (upper, y) in pairwise(zip(climb, log_flops, strict=True)):
        if not x < y:
            raise UserError(
                f"study.ladder: a run of {upper} takes {10**y:.3g} FLOPs and one of {lower}, before it, "
                f"{10**x:.3g}; list the rungs from the smallest compute to the largest"
            )


def costs(plan: Manifest) -> dict[str, float]:
    """Return what the runs of a ladder cost, relative to one another, by folder: the FLOPs of their rung."""
    at = {rung.name: 10.0 ** max(rung.log_flops.values()) for rung in plan.ladder if rung.log_flops}
    return {
        run: at[rung]
        for group in plan.groups
        if (rung := group.settings.get(RUNG, "")) in at
        for run in group.runs.values()
    }
