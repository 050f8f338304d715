"""One optimizer for the whole model: Muon for matrices, AdamW for the rest.

Each group sets `algorithm: muon | adamw`. Because it is a single `torch.optim.Optimizer`, Lightning's
automatic optimization handles clipping, accumulation and resume.

The formula of Muon is in `muon.py`. Several ranks divide its Newton-Schulz among them, and update
AdamW's groups while they exchange the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from jepa_lm.optim.muon import NS_DTYPES, UPDATE_SCALES, ShardedUpdate, update_alone
from jepa_lm.optim.sharding import world_size
from jepa_lm.utils.config import check_type
from jepa_lm.utils.errors import UserError

DEFAULTS: dict[str, dict[str, Any]] = {
    "muon": {
        "momentum": 0.95,
        "nesterov": True,
        "ns_steps": 5,
        "ns_dtype": "bfloat16",
        "update_scale": "rows_over_cols",
        "row_normalize": False,
        "weight_decay": 0.0,
    },
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0},
}
"""Settings of each algorithm; a group must set `lr` and may set these."""
MOMENTS = {"muon": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
"""State that each algorithm keeps for a parameter that it has updated."""
HINTS: dict[str, Any] = {
    "lr": float,
    "betas": list[float],
    **{
        key: float if isinstance(value, float) else type(value)
        for defaults in DEFAULTS.values()
        for key, value in defaults.items()
        if key != "betas"
    },
}
"""Types of settings."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW by parameter group.

    Args:
        groups: dicts with `params`, `algorithm`, `lr`, and any of that algorithm's `DEFAULTS`.

    Raises:
        UserError: an unknown algorithm, setting, update scale or dtype, or a Muon group with a
            parameter that is not a matrix.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__([_complete(group) for group in groups], defaults={})
        self._momenta = [group.get("momentum") for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss.

        With several ranks, each must call it with the same gradients (`muon.ShardedUpdate`).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon, others = self._with_gradients("muon"), self._with_gradients("adamw")
        sharded = ShardedUpdate(muon, self.state) if muon and world_size() > 1 else None
        for group, params in others:
            self._adamw(group, params)
        if sharded is not None:
            sharded.finish()
        else:
            for group, params in muon:
                update_alone(group, params, self.state)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the moments, but keep the settings of the current config."""
        own = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        super().load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, own, strict=True):
            group.update(settings)

    @contextmanager
    def own_momentum(self) -> Iterator[None]:
        """Context in which Muon uses the momentum of its groups instead of the scheduled one."""
        written = [group.get("momentum") for group in self.param_groups]
        self._set_momenta(self._momenta)
        try:
            yield
        finally:
            self._set_momenta(written)

    def _set_momenta(self, momenta: list[float | None]) -> None:
        for group, momentum in zip(self.param_groups, momenta, strict=True):
            if momentum is not None:
                group["momentum"] = momentum

    def zero_counters(self) -> None:
        """Reset AdamW's step counters, which bias correction uses, but keep its moments."""
        for state in self.state.values():
            if "step" in state:
                state["step"].zero_()

    def _with_gradients(self, algorithm: str) -> list[tuple[dict[str, Any], list[Tensor]]]:
        """Return each group of an algorithm that has gradients, with the parameters that have one."""
        groups = [g for g in self.param_groups if g["algorithm"] == algorithm]
        found = [(g, [p for p in g["params"] if p.grad is not None]) for g in groups]
        return [(group, params) for group, params in found if params]

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],  # type: ignore[misc]
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _check_values(name: str, group: dict[str, Any], like: dict[str, Any]) -> None:
    """Check that each value has the type of its default and that numbers are not negative."""
    for key, default in like.items():
        path, value = f"optimizer.groups.{name}.{key}", group[key]
        if isinstance(default, tuple):
            check_type(path, list(value) if isinstance(value, tuple) else value, list[float])
            if len(value) != len(default) or not all(0 <= beta < 1 for beta in value):
                raise UserError(f"{path}={value}: {len(default)} numbers from 0 to below 1")
        else:
            check_type(path, value, float if isinstance(default, float) else type(default))
            if not isinstance(value, str) and value < 0:
                raise UserError(f"{path}={value}: 0 or more")


def _complete(group: dict[str, Any]) -> dict[str, Any]:
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
    for key, value in group.items():
        if key in HINTS:
            check_type(f"optimizer.groups.{name}.{key}", value, HINTS[key])
    group = DEFAULTS[algorithm] | group
    _check_values(name, group, {"lr": 0.0, **DEFAULTS[algorithm]})
    if algorithm == "muon":
        for key, table in (("update_scale", UPDATE_SCALES), ("ns_dtype", NS_DTYPES)):
            if group[key] not in table:
                raise UserError(
                    f"optimizer.groups.{name}.{key}={group[key]}: one of {', '.join(table)}"
                )
        wrong = [tuple(p.shape) for p in group["params"] if p.ndim != 2]
        if wrong:
            raise UserError(
                f"optimizer.groups.{name}: Muon takes matrices, found a parameter of shape {wrong[0]}"
            )
    else:
        group["betas"] = tuple(group["betas"])
    return group
