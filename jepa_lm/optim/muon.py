"""Muon: M <- momentum M + G; U = G + momentum M (Nesterov) or M; W <- (1 - lr wd) W - lr s NS(U).

The scale s of a matrix with R rows and C columns is `update_scale`: `rows_over_cols`
sqrt(max(1, R/C)), `match_adamw` 0.2 sqrt(max(R, C)), or `none`. `row_normalize` divides each row of
U by its root mean square before the orthogonalisation (#903).

`update_alone` is the update of a single process and the reference for `ShardedUpdate`, which divides
Newton-Schulz among ranks. Every rank keeps all momenta, so any rank's checkpoint is complete and
resumes with any number of ranks.
Legend: S matrices of one group and shape, R rows, C columns, W ranks, N values that each rank sends.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jepa_lm.model.layers import rms_norm
from jepa_lm.optim.newton_schulz import orthogonalise
from jepa_lm.optim.sharding import Matrix, plan_shares, start_gather, world_size

Group = dict[str, Any]
State = dict[Tensor, dict[str, Any]]

UPDATE_SCALES: dict[str, Callable[[int, int], float]] = {
    "rows_over_cols": lambda rows, cols: math.sqrt(max(1.0, rows / cols)),
    "match_adamw": lambda rows, cols: 0.2 * math.sqrt(max(rows, cols)),
    "none": lambda rows, cols: 1.0,
}
NS_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def update_alone(group: Group, params: list[Tensor], state: State) -> None:
    """Update the matrices of a group in a single process.

    Matrices of one shape are stacked, so a model of 60 matrices needs only a handful of GEMMs.
    """
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for p in params:
        by_shape[p.shape].append(p)
    for matrices in by_shape.values():
        take_up(group, matrices, state)
        ortho = orthogonal_updates(group, matrices, state)
        apply_updates(group, matrices, ortho.to(matrices[0].dtype))


def take_up(group: Group, matrices: list[Tensor], state: State) -> None:
    """Update the momenta of matrices [R, C], of any shapes, with their gradients."""
    if not matrices:
        return
    for p in matrices:
        if "momentum_buffer" not in state[p]:
            state[p]["momentum_buffer"] = torch.zeros_like(p)
    before = [state[p]["momentum_buffer"] for p in matrices]
    buffers = torch._foreach_add(_gradients(matrices), before, alpha=group["momentum"])
    for p, buffer in zip(matrices, buffers, strict=True):
        state[p]["momentum_buffer"] = buffer


def orthogonal_updates(group: Group, matrices: list[Tensor], state: State) -> Tensor:
    """Return NS(U) of matrices of one shape, [S, R, C] in the group's `ns_dtype`."""
    directions = [state[p]["momentum_buffer"] for p in matrices]
    if group["nesterov"]:
        directions = list(
            torch._foreach_add(_gradients(matrices), directions, alpha=group["momentum"])
        )
    stacked = torch.stack(directions)
    if group["row_normalize"]:
        stacked = rms_norm(stacked)
    return orthogonalise(stacked, steps=group["ns_steps"], dtype=NS_DTYPES[group["ns_dtype"]])


def apply_updates(group: Group, matrices: list[Tensor], ortho: Tensor) -> None:
    """Decay matrices of one shape, then subtract their scaled updates [S, R, C]."""
    scale = group["lr"] * UPDATE_SCALES[group["update_scale"]](*matrices[0].shape)
    if group["weight_decay"]:
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(matrices, list(ortho), alpha=-scale)


def _gradients(matrices: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in matrices]  # type: ignore[misc]


class ShardedUpdate:
    """One update of all Muon groups, with row normalisation and Newton-Schulz divided among ranks.

    The constructor orthogonalises this rank's matrices and starts sending them; any work before `finish`
    overlaps with the exchange. It needs one collective, and the host does not wait for the device.
    All ranks must hold the same gradients and lack them for the same parameters, as after DDP.

    Args:
        groups: each Muon group with its parameters that have a gradient, all on one device.
        state: the optimizer's state, by parameter.
    """

    def __init__(self, groups: list[tuple[Group, list[Tensor]]], state: State) -> None:
        members = [(i, p) for i, (_, params) in enumerate(groups) for p in params]
        self._groups = [groups[i][0] for i, _ in members]
        self._matrices = [p for _, p in members]
        shapes = [
            Matrix(i, rows=p.shape[0], cols=p.shape[1], ns_steps=groups[i][0]["ns_steps"])
            for i, p in members
        ]
        self._plan = plan_shares(tuple(shapes), world_size())
        self._gathered, self._work = start_gather(self._orthogonalise_mine(state))
        # During the exchange: the matrices of other ranks need their momenta updated as well.
        mine = {members[i][1] for batch in self._plan.batches[dist.get_rank()] for i in batch}
        for group, params in groups:
            take_up(group, [p for p in params if p not in mine], state)

    def _orthogonalise_mine(self, state: State) -> Tensor:
        """Return what this rank sends, [N]; float32 if any group uses it, as it holds bfloat16 exactly."""
        dtype = reduce(torch.promote_types, (NS_DTYPES[g["ns_dtype"]] for g in self._groups))
        mine = torch.empty(self._plan.numbers, dtype=dtype, device=self._matrices[0].device)
        for batch in self._plan.batches[dist.get_rank()]:
            group, matrices = self._groups[batch[0]], [self._matrices[i] for i in batch]
            take_up(group, matrices, state)
            ortho = orthogonal_updates(group, matrices, state)
            begin = self._plan.places[batch[0]][1]
            mine[begin : begin + ortho.numel()].view(ortho.shape).copy_(ortho)
        return mine

    def finish(self) -> None:
        """Wait for the matrices of the other ranks and update all matrices."""
        self._work.wait()
        for kind in self._plan.kinds:
            matrices = [self._matrices[i] for i in kind]
            shape = matrices[0].shape
            ortho = torch.empty(
                (len(kind), *shape), dtype=matrices[0].dtype, device=matrices[0].device
            )
            places = [self._plan.places[i] for i in kind]
            received = [
                self._gathered[rank, begin : begin + shape.numel()].view(shape)
                for rank, begin in places
            ]
            torch._foreach_copy_(list(ortho), received)
            apply_updates(self._groups[kind[0]], matrices, ortho)
