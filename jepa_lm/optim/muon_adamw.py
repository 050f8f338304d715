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

from jepa_lm.optim.groups import complete
from jepa_lm.optim.muon import ShardedUpdate, update_alone
from jepa_lm.optim.sharding import world_size

MOMENTS = {"muon": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
"""State that each algorithm keeps for a parameter that it has updated."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW by parameter group.

    Args:
        groups: dicts with `params`, `algorithm`, `lr`, and any of that algorithm's settings, see `groups`.

    Raises:
        UserError: an unknown algorithm, setting, update scale or dtype, or a Muon parameter not a matrix.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__([complete(group) for group in groups], defaults={})
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
        muon, others = self.with_gradients("muon"), self.with_gradients("adamw")
        sharded = ShardedUpdate(muon, self.state) if muon and world_size() > 1 else None
        for group, params in others:
            self.adamw(group, params)
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

    def with_gradients(self, algorithm: str) -> list[tuple[dict[str, Any], list[Tensor]]]:
        """Return each group of an algorithm that has gradients, with the parameters that have one."""
        groups = [g for g in self.param_groups if g["algorithm"] == algorithm]
        found = [(g, [p for p in g["params"] if p.grad is not None]) for g in groups]
        return [(group, params) for group, params in found if params]

    def adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Update the parameters of a group of AdamW."""
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
