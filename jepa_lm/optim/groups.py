"""Settings of a parameter group: their defaults and their kinds, by algorithm."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_lm.optim.muon import NS_DTYPES, UPDATE_SCALES
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Decay, Kind, NotNegative, Whole, check_kind, kind_of
from jepa_lm.utils.precision import has_bfloat16

DEFAULTS: dict[str, dict[str, Any]] = {
    "muon": {
        "momentum": 0.95,
        "nesterov": True,
        "ns_steps": 5,
        "ns_dtype": "auto",
        "update_scale": "rows_over_cols",
        "row_normalize": False,
        "weight_decay": 0.0,
    },
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0},
}
"""Settings of each algorithm; a group must set `lr` and may set these."""
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("lr", "momentum", "weight_decay", "eps"), kind_of(NotNegative)),
    **dict.fromkeys(("nesterov", "row_normalize"), "bool"),
    "ns_steps": kind_of(Whole),
    "ns_dtype": {"one of": ["auto", *NS_DTYPES]},
    "update_scale": {"one of": list(UPDATE_SCALES)},
    "betas": kind_of(list[Decay]),
}
"""Kinds of the settings, see `jepa_lm.utils.kinds`."""


def complete(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group with the defaults of its algorithm filled in, after checking its settings."""
    group = dict(group)
    name = group.get("name", "?")
    algorithm = group.get("algorithm")
    if algorithm not in DEFAULTS:
        raise UserError(
            f"optimizer.groups.{name}.algorithm={algorithm}: one of {', '.join(DEFAULTS)}"
        )
    known = {"name", "params", "algorithm", "lr", *DEFAULTS[algorithm]}
    for key in group.keys() - known:
        settings = ", ".join(sorted(known - {"name", "params"}))
        raise UserError(
            f"optimizer.groups.{name}.{key}: {algorithm} has no such setting; one of {settings}"
        )
    if "lr" not in group:
        raise UserError(f"optimizer.groups.{name}.lr is not set")
    for key in group.keys() & KINDS.keys():
        check_kind(f"optimizer.groups.{name}.{key}", group[key], KINDS[key])
    group = DEFAULTS[algorithm] | group
    if algorithm == "muon":
        wrong = [tuple(p.shape) for p in group["params"] if p.ndim != 2]
        if wrong:
            raise UserError(
                f"optimizer.groups.{name}: Muon takes matrices, found a parameter of shape {wrong[0]}"
            )
        if group["ns_dtype"] == "auto":
            group["ns_dtype"] = _fast_dtype(group["params"])
    else:
        group["betas"] = tuple(group["betas"])
        if len(group["betas"]) != 2:
            raise UserError(f"optimizer.groups.{name}.betas={group['betas']}: needs two numbers")
    return group


def _fast_dtype(params: list[Tensor]) -> str:
    """Return bfloat16 where the parameters' device has it; elsewhere float32 is several times faster."""
    device = params[0].device.type if params else "cpu"
    return "bfloat16" if has_bfloat16(device) else "float32"
