"""One optimizer for the whole model: Muon for matrices, AdamW for the rest.

Each group carries `algorithm: muon | adamw`. Being one `torch.optim.Optimizer`, it leaves
Lightning's automatic optimization in charge of clipping, accumulation and resume.

Muon: M <- momentum M + G; U = G + momentum M (Nesterov) or M; W <- (1 - lr wd) W - lr s NS(U).
The scale s of a matrix with R rows and C columns is `update_scale`: `rows_over_cols`
sqrt(max(1, R/C)), `match_adamw` 0.2 sqrt(max(R, C)), or `none`. `row_normalize` divides each row of
U by its root mean square before the orthogonalisation (#903).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from jepa_lm.errors import UserError
from jepa_lm.model.layers import rms_norm
from jepa_lm.optim.newton_schulz import orthogonalise

UPDATE_SCALES: dict[str, Callable[[int, int], float]] = {
    "rows_over_cols": lambda rows, cols: math.sqrt(max(1.0, rows / cols)),
    "match_adamw": lambda rows, cols: 0.2 * math.sqrt(max(rows, cols)),
    "none": lambda rows, cols: 1.0,
}
NS_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
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


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW by parameter group.

    Args:
        groups: dicts with `params`, `algorithm`, `lr`, and any of that algorithm's `DEFAULTS`.

    Raises:
        UserError: an unknown algorithm, setting, update scale or dtype; a Muon group with a
            parameter that is no matrix.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__([_complete(group) for group in groups], defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["algorithm"] == "muon" else self._adamw)(group, params)
        return loss

    def zero_counters(self) -> None:
        """Forget how many steps AdamW's moments were averaged over, but not the moments."""
        for state in self.state.values():
            if "step" in state:
                state["step"].zero_()

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Same-shape matrices are stacked, so that a model of 60 matrices runs a handful of GEMMs."""
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            by_shape[p.shape].append(p)
        for shape, matrices in by_shape.items():
            stacked = torch.stack(self._momentum(group, matrices))
            if group["row_normalize"]:
                stacked = rms_norm(stacked)
            ortho = orthogonalise(
                stacked, steps=group["ns_steps"], dtype=NS_DTYPES[group["ns_dtype"]]
            )
            scale = group["lr"] * UPDATE_SCALES[group["update_scale"]](*shape)
            if group["weight_decay"]:
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(ortho.to(matrices[0].dtype)), alpha=-scale)

    def _momentum(self, group: dict[str, Any], matrices: list[Tensor]) -> list[Tensor]:
        """Take the gradients up; what is to be orthogonalised."""
        states, momentum = [self.state[p] for p in matrices], group["momentum"]
        for p, state in zip(matrices, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
        grads: list[Tensor] = [p.grad for p in matrices]  # type: ignore[misc]
        buffers = torch._foreach_add(grads, [s["momentum_buffer"] for s in states], alpha=momentum)
        for state, buffer in zip(states, buffers, strict=True):
            state["momentum_buffer"] = buffer
        if group["nesterov"]:
            return list(torch._foreach_add(grads, buffers, alpha=momentum))
        return list(buffers)

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


def _complete(group: dict[str, Any]) -> dict[str, Any]:
    """A group with its algorithm's defaults filled in."""
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
            f"optimizer.groups.{name}.{key}: {algorithm} has no such setting; {settings}"
        )
    if "lr" not in group:
        raise UserError(f"optimizer.groups.{name}.lr is not set")
    group = DEFAULTS[algorithm] | group
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
