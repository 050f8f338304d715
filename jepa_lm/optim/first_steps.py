"""What a first step would do to parameters, for a measurement: no parameter and no moment is changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jepa_lm.optim.groups import DEFAULTS
from jepa_lm.optim.muon import update_alone
from jepa_lm.optim.muon_adamw import MuonAdamW


@torch.no_grad()
def first_steps(optimizer: MuonAdamW, gradients: Mapping[Tensor, Tensor]) -> list[Tensor]:
    """Return what a new optimizer's first step with these gradients would add to their parameters.

    With the settings of the optimizer, the learning rates that its schedule scales, empty moments and no
    weight decay. Ranks do not wait for one another.
    """
    # Parameters at zero: where they go is the step, and decay takes nothing off.
    places = {p: torch.zeros_like(p, requires_grad=False) for p in gradients}
    groups = []
    for group in optimizer.param_groups:
        mine = [places[p] for p in group["params"] if p in places]
        if mine:
            known = {"algorithm", *DEFAULTS[group["algorithm"]]}
            settings = {key: value for key, value in group.items() if key in known}
            lr = group.get("initial_lr", group["lr"])  # the schedule's may be zero by now
            groups.append({**settings, "params": mine, "lr": lr})
    for p, gradient in gradients.items():
        places[p].grad = gradient
    new = MuonAdamW(groups)
    for group, params in new.with_gradients("adamw"):
        new.adamw(group, params)
    for group, params in new.with_gradients("muon"):
        update_alone(group, params, new.state)
    return list(places.values())
