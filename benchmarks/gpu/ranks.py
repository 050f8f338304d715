"""The exchange between processes, over NCCL with one rank and over gloo with two on one GPU.

`python -m benchmarks.gpu.ranks DEVICE BACKEND` is one rank; the usual variables say which. Each rank takes
its share of a batch through DDP, then updates the weights with its share of Newton-Schulz. The same is
computed alone, from the whole batch, and compared.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.losses import small_batch, small_task, step_clock
from benchmarks.gpu.parity import EXACT_GRADIENT, difference
from benchmarks.gpu.scale import Scale, quiet
from benchmarks.measure import Claim, at_most, report
from jepa_lm.objective import StepContext
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask

PRESET = "pr1243_jepardy"
SECONDS = 240
"""For two ranks to start and to finish; a rank that fails leaves the other one waiting."""
FIGURES = ("gradient", "update", "apart")
UNITS = {
    "gradient": "relative difference of gradients",
    "update": "relative difference of weights",
    "apart": "ranks with other weights",
}
TARGETS = {"gradient": EXACT_GRADIENT, "update": EXACT_GRADIENT, "apart": 0.0}


def claims(scale: Scale) -> Iterator[Claim]:
    """Yield claims about NCCL with one rank (gloo in a rehearsal), two gloo ranks, and training by DDP."""
    backend = scale.pick("nccl", "gloo")
    groups = {
        f"{backend}_1": _started(scale.device, backend, ranks=1),
        "gloo_2": _started(scale.device, "gloo", ranks=2),
    }
    try:
        yield trained(scale)  # while they start
        for name, processes in groups.items():
            yield from _claims_of(name, _figures(processes))
    finally:
        for process in (p for processes in groups.values() for p in processes):
            process.kill()


def trained(scale: Scale) -> Claim:
    """Train three steps by DDP with one rank."""
    name, began = "ddp", time.perf_counter()
    sizes = (f"data.batch_tokens={scale.pick(16_384, 256)}", "compile=false", "trainer.max_steps=3")
    cfg = scale.config(
        PRESET, name, *sizes, "trainer.devices=1", trainer=scale.pick("ddp", "ddp_sim")
    )
    with quiet():
        train(cfg)
    backend = dist.get_backend() if dist.is_initialized() else "none"
    summary = json.loads((scale.folder / name / "summary.json").read_text(encoding="utf-8"))
    return report(
        "ranks/ddp_1", time.perf_counter() - began, unit="s for 3 steps by DDP",
        limit=None, spread=0.0, details={"backend": backend, "nll": summary["val"]["nll"]},
    )  # fmt: skip


def _claims_of(name: str, found: dict[str, Any]) -> Iterator[Claim]:
    """Yield the claims about one group of ranks, or one about why there is none."""
    if "failed" in found:
        yield at_most(
            f"ranks/{name}", 1.0, unit="groups that failed", target=0.0, limit=0.0, spread=0.0,
            details=found,
        )  # fmt: skip
        return
    for figure in FIGURES:
        yield at_most(
            f"ranks/{name}/{figure}", found[figure], unit=UNITS[figure], target=TARGETS[figure],
            limit=0.0, spread=0.0, details={"exchange_ms": found["exchange_ms"]},
        )  # fmt: skip


def _started(device: str, backend: str, *, ranks: int) -> list[subprocess.Popen[str]]:
    """Start ranks on one device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.gpu.ranks", device, backend]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **where, "RANK": str(rank), "WORLD_SIZE": str(ranks)},
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for rank in range(ranks)
    ]


def _figures(processes: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """Return the figures of the first rank, or why a rank failed; its message is in the step's log."""
    deadline = time.monotonic() + SECONDS
    said = []
    for process in processes:
        try:
            said.append(process.communicate(timeout=max(0.0, deadline - time.monotonic()))[0])
        except subprocess.TimeoutExpired:
            return {"failed": f"no end within {SECONDS} s"}
        if process.returncode:
            return {"failed": f"exit code {process.returncode}"}
    found: dict[str, Any] = json.loads(said[0].strip().splitlines()[-1])
    return found


class Loss(torch.nn.Module):
    """The training loss of a task, for DDP."""

    def __init__(self, task: LanguageModelTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: dict[str, Tensor], context: StepContext) -> Tensor:
        """Return cross entropy and the objective at its full weight."""
        loss, _, components = self.task.losses(batch, context)
        assert self.task.objective is not None
        return loss + self.task.objective.total(components["jepa"], context.clock)


def be_rank(device: str, backend: str) -> dict[str, Any]:
    """Compute a step as one of the ranks; return how it differs from one process, and the time it takes."""
    dist.init_process_group(backend, timeout=timedelta(seconds=SECONDS))
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.use_deterministic_algorithms(True, warn_only=True)
    clock = step_clock()
    task = small_task(PRESET, "optimizer.groups.matrices.ns_dtype=float32").to(device)
    batch = {name: ids.to(device) for name, ids in small_batch(task).items()}
    alone = copy.deepcopy(task)
    Loss(alone)(batch, StepContext(clock)).backward()
    rows = len(batch["inputs"]) // world
    mine = {name: ids[rank * rows : (rank + 1) * rows] for name, ids in batch.items()}
    ddp = DistributedDataParallel(Loss(task), broadcast_buffers=False)
    ddp(mine, StepContext(clock, rank=rank, world_size=world)).backward()
    gradient = difference(_gradients(task), _gradients(alone))

    for p, exact in zip(task.parameters(), alone.parameters(), strict=True):
        p.grad = None if exact.grad is None else exact.grad.clone()
    _updated(alone, clock, ranks=1)
    _updated(task, clock, ranks=2)  # divided among ranks, even if there is only one
    update = difference(_weights(task), _weights(alone))
    began = time.perf_counter()
    apart = _apart(task)
    found = {"gradient": gradient, "update": update, "apart": float(apart)}
    found["exchange_ms"] = 1000 * (time.perf_counter() - began)
    del ddp  # while the other rank is there: without it, gloo has been seen to wait for ever
    dist.barrier()
    dist.destroy_process_group()
    return found


def _updated(task: LanguageModelTask, clock: ProgressClock, *, ranks: int) -> None:
    """Update a task's weights as the optimizer does with one rank, or with more."""
    optimizer, _ = task.recipe.configure(task, clock)
    with mock.patch("jepa_lm.optim.muon_adamw.world_size", return_value=ranks):
        optimizer.step()


def _apart(task: LanguageModelTask) -> int:
    """Return how many ranks hold other weights than the first one."""
    mine = _weights(task)
    first = mine.clone()
    dist.broadcast(first, 0)
    differs = torch.tensor(float(not torch.equal(mine, first)), device=mine.device)
    dist.all_reduce(differs)
    return int(differs.item())


def _weights(task: LanguageModelTask) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.parameters()])


def _gradients(task: LanguageModelTask) -> Tensor:
    return torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])


if __name__ == "__main__":
    print(json.dumps(be_rank(sys.argv[1], sys.argv[2])), flush=True)
    os._exit(0)  # the threads of gloo are not waited for
