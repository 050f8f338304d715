"""One of four gloo ranks: Muon's sharded update against the same update in one process.

Arguments: an empty folder for the ranks to meet in; a file for the results, by number of ranks and
case (JSON). Groups of 2, 3 and 4 of the processes train together, one after the other.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.optim.sharding import Plan, plan_shares

WORLDS = (2, 3, 4)
STEPS, LR = 3, 0.02
MIXED = ((16, 16), (40, 10), (10, 40), (16, 16), (40, 10), (7, 33), (16, 16))
"""Square, tall and wide; seven is no multiple of 2, 3 or 4."""


@dataclass(frozen=True)
class Case:
    """Muon groups given by settings and shapes, and an AdamW group of one vector if `vector` is set.

    Args:
        missing: (step, index of a parameter) pairs without a gradient.
    """

    groups: tuple[tuple[dict[str, Any], tuple[tuple[int, int], ...]], ...]
    vector: bool = False
    missing: frozenset[tuple[int, int]] = frozenset()


SETTINGS: dict[str, dict[str, Any]] = {
    "float32": dict(ns_dtype="float32", weight_decay=0.1),
    "float32_no_nesterov": dict(ns_dtype="float32", nesterov=False),
    "float32_rows": dict(ns_dtype="float32", row_normalize=True, update_scale="match_adamw"),
    "bfloat16": dict(weight_decay=0.1),
    "bfloat16_no_nesterov_rows": dict(nesterov=False, row_normalize=True),
}
CASES = {name: Case(((settings, MIXED),)) for name, settings in SETTINGS.items()} | {
    "two_types": Case((({}, MIXED[:4]), ({"ns_dtype": "float32"}, MIXED[2:])), vector=True),
    "one_matrix": Case((({}, ((12, 8),)),), vector=True),
    "missing_gradients": Case(
        (({}, MIXED), ({"ns_steps": 3}, MIXED)), missing=frozenset({(0, 9), (1, 2), (1, 13)})
    ),
    "no_gradient_at_all": Case(
        (({}, MIXED[:2]),), vector=True, missing=frozenset({(1, 0), (1, 1)})
    ),
}


class Watch(TorchDispatchMode):
    """Counts collectives of any kind, and values that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives = self.host_reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.collectives += func.namespace == "c10d"
        self.host_reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def build(case: Case) -> tuple[MuonAdamW, list[nn.Parameter]]:
    torch.manual_seed(0)
    groups: list[dict[str, Any]] = [
        dict(
            params=[nn.Parameter(torch.randn(shape)) for shape in shapes],
            algorithm="muon",
            lr=LR,
            **{"ns_dtype": "bfloat16", **settings},
        )
        for settings, shapes in case.groups
    ]
    if case.vector:
        groups.append(dict(params=[nn.Parameter(torch.randn(9))], algorithm="adamw", lr=LR))
    return MuonAdamW(groups), [p for group in groups for p in group["params"]]


def train(case: Case) -> tuple[list[Tensor], list[Tensor], list[Watch]]:
    """Return parameters and momenta after some steps, and each step's counts."""
    optimizer, parameters = build(case)
    watches = []
    for step in range(STEPS):
        torch.manual_seed(100 + step)
        for i, p in enumerate(parameters):
            grad = torch.randn(p.shape)
            p.grad = None if (step, i) in case.missing else grad
        with Watch() as watch:
            optimizer.step()
        watches.append(watch)
    momenta = [optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)) for p in parameters]
    return [p.detach() for p in parameters], momenta, watches


def findings(case: Case, alone: tuple[list[Tensor], list[Tensor], list[Watch]]) -> dict[str, Any]:
    """Compare the sharded run with the run of a single process."""
    parameters, momenta, watches = train(case)
    mine = torch.cat([x.flatten() for x in parameters + momenta])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    pairs = list(zip(parameters, alone[0], strict=True))
    return {
        "ranks_equal": all(torch.equal(mine, other) for other in everyone),
        "momenta_equal": all(torch.equal(a, b) for a, b in zip(momenta, alone[1], strict=True)),
        "identical": all(torch.equal(a, b) for a, b in pairs),
        "relative": largest([(a - b).abs().max() / b.abs().max() for a, b in pairs]),
        "in_updates": largest([(a - b).abs().max() / LR for a, b in pairs]),
        "collectives": [watch.collectives for watch in watches],
        "host_reads": [watch.host_reads for watch in watches],
        "alone_collectives": [watch.collectives for watch in alone[2]],
    }


def largest(values: list[Tensor]) -> float:
    """Return NaN if one of them is NaN, which Python's max would overlook."""
    return torch.stack(values).max().item()


def without_one(*arguments: Any) -> Plan:
    """Planted bug: a plan that leaves out the first matrix of its last rank."""
    plan = plan_shares(*arguments)
    *others, last = plan.batches
    left = tuple(batch for batch in (last[0][1:], *last[1:]) if batch)
    return replace(plan, batches=(*others, left))


def main() -> None:
    torch.set_num_threads(1)
    folder, results = sys.argv[1:]
    rank = int(os.environ["RANK"])
    alone = {name: train(case) for name, case in CASES.items()}
    found: dict[int, dict[str, Any]] = {}
    for world in (w for w in WORLDS if rank < w):
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world
        )
        found[world] = {name: findings(case, alone[name]) for name, case in CASES.items()}
        with mock.patch("jepa_lm.optim.muon.plan_shares", without_one):
            found[world]["planted"] = findings(CASES["float32"], alone["float32"])
        dist.destroy_process_group()
    if rank == 0:
        with open(results, "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main()
