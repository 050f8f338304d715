"""One of several gloo ranks: regularizers on its share of rows, compared to the joint rows.

Argument: a file for the results (JSON), {case: {split: largest relative difference}}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist

from jepa_lm.objective.batch_norm import batch_normed
from jepa_lm.objective.ranks import sum_over_ranks
from jepa_lm.objective.regularizers import (
    Covariance,
    SpectralFloor,
    StdHinge,
    Variance,
)
from jepa_lm.objective.sigreg import SIGReg
from jepa_lm.objective.statistics import standardised
from jepa_lm.objective.step_context import StepContext
from jepa_lm.schedules.clock import ProgressClock

BATCH, LATENTS, DIM = 8, 6, 5


class BarlowTwins(torch.nn.Module):
    """A distance by a statistic of rows: the cross-correlation of prediction and target is the identity.

    As a part of one tensor, for this worker: the target is the same rows with their dimensions turned.
    """

    def forward(self, x: torch.Tensor, step_context: StepContext) -> torch.Tensor:
        joint = step_context.joint
        rows = [
            standardised(y.flatten(0, -2), joint=joint, min_std=1e-6)
            for y in (x, x.roll(1, -1) ** 2)
        ]
        count = rows[0].new_tensor(float(len(rows[0])))
        moments = rows[0].T @ rows[1]
        if joint:
            count, moments = sum_over_ranks(count), sum_over_ranks(moments, replicated=True)
        return (moments / count - torch.eye(DIM).to(x)).square().sum()


class BehindBatchNorm(torch.nn.Module):
    """A mean over all rows behind a batch norm; as a part of one tensor, for this worker."""

    def forward(self, x: torch.Tensor, step_context: StepContext) -> torch.Tensor:
        joint = step_context.joint
        normed = batch_normed(x.flatten(0, -2), joint=joint, eps=1e-5)
        count, cubes = normed.new_tensor(float(len(normed))), (normed - 0.3).pow(3).sum()
        if joint:
            count, cubes = sum_over_ranks(count), sum_over_ranks(cubes, replicated=True)
        return cubes / count


class Compiled(torch.nn.Module):
    """A part as a compiler sees it, for this worker."""

    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.call = torch.compile(part.forward, backend="eager", fullgraph=True)

    def forward(self, x: torch.Tensor, step_context: StepContext) -> torch.Tensor:
        found: torch.Tensor = self.call(x, step_context)
        return found


PLACE = dict(tensor="context", weight=1.0)
FLOOR = dict(PLACE, floor=0.9)
SIGREG = dict(PLACE, dim=DIM, directions=16, knots=17, low=0.2, high=4.0, window=True, seed=0)
PER_STEP = dict(SIGREG, per_step=True, max_steps=4, standardise=False, fresh=False)
POOLED = dict(
    SIGREG, high=3.0, window=False, per_step=False, max_steps=None, standardise=True, fresh=False
)
CASES: dict[str, Callable[[], torch.nn.Module]] = {
    "variance": lambda: Variance(**PLACE, gamma=3.0, eps=1e-4),
    "covariance": lambda: Covariance(**PLACE),
    "std": lambda: StdHinge(**PLACE, gamma=3.0),
    "floor": lambda: SpectralFloor(**FLOOR, relative=False, differences=False),
    "floor_relative": lambda: SpectralFloor(**FLOOR, relative=True, differences=True),
    "sigreg_per_step": lambda: SIGReg(**PER_STEP),
    "sigreg_per_step_standardised": lambda: SIGReg(**dict(PER_STEP, standardise=True)),
    "sigreg_pooled": lambda: SIGReg(**POOLED),
    "sigreg_pooled_raw": lambda: SIGReg(**dict(POOLED, standardise=False)),
    "a_distance": BarlowTwins,
    "sigreg_times_rows": lambda: SIGReg(**dict(PER_STEP, times_rows=True)),
    "batch_norm": BehindBatchNorm,
    "sigreg_compiled": lambda: Compiled(SIGReg(**dict(POOLED, standardise=False))),
    "sigreg_fresh": lambda: SIGReg(**dict(PER_STEP, fresh=True)),
}
SPLITS = {"even": {2: (4, 4), 4: (2, 2, 2, 2)}, "uneven": {2: (5, 3), 4: (3, 1, 2, 2)}}
"""Rows of each rank, by number of ranks."""
ALONE = StepContext(ProgressClock(max_steps=10, max_time=None), micro_batch=3)


def latents(dtype: torch.dtype, shift: float = 0.0) -> torch.Tensor:
    """Rows [B, N, D] whose statistics differ between ranks."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, LATENTS, DIM, generator=draw, dtype=torch.float64)
    x = x * torch.linspace(0.4, 1.6, DIM) + torch.linspace(-1, 1, BATCH)[:, None, None]
    return (x + shift).to(dtype)


def difference(
    part: torch.nn.Module, joint: torch.Tensor, sizes: tuple[int, ...], *, local: bool = False
) -> float:
    """Return the difference of loss and gradient from those of one process, relative to the latter."""
    rank, world = dist.get_rank(), dist.get_world_size()
    start = sum(sizes[:rank])
    whole, mine = (x.clone().requires_grad_() for x in (joint, joint[start : start + sizes[rank]]))
    want = part(whole, ALONE)
    want.backward()
    assert whole.grad is not None
    got = part(mine, replace(ALONE, rank=rank, world_size=world, joint=not local))
    got.backward()
    assert mine.grad is not None
    # DDP averages over ranks, so each rank has W times its rows' share of the gradient.
    expected = world * whole.grad[start : start + sizes[rank]]
    apart = (mine.grad - expected).norm() / (world * whole.grad.norm())
    return max(apart.item(), (got - want).abs().item() / want.abs().item())


def found_in(dtype: torch.dtype, case: str, **more: float) -> dict[str, float]:
    world = dist.get_world_size()
    x = latents(dtype, **more)
    return {split: difference(CASES[case](), x, SPLITS[split][world]) for split in SPLITS}


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    even = SPLITS["even"][dist.get_world_size()]
    found: dict[str, dict[str, float]] = {}
    for case in CASES:
        found[case] = found_in(torch.float64, case)
        found[f"{case}/float32"] = found_in(torch.float32, case)
        local = difference(CASES[case](), latents(torch.float64), even, local=True)
        found[f"{case}/local"] = {"even": local}
    for case in ("variance", "covariance", "std", "floor"):
        found[f"{case}/far"] = found_in(torch.float64, case, shift=1e4)
    zeros = torch.zeros(3, LATENTS, DIM, requires_grad=True)
    for case in ("variance", "covariance", "std", "sigreg_pooled"):
        CASES[case]()(zeros, replace(ALONE, joint=True)).backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    if dist.get_rank() == 0:
        worst = {
            case: {split: max(other[case][split] for other in every) for split in splits}  # type: ignore[index]
            for case, splits in found.items()
        }
        with open(sys.argv[1], "w") as file:
            json.dump(worst, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
