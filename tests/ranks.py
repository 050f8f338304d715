"""Gloo processes for tests, and a check that they stay together."""

from __future__ import annotations

import socket
import time
from typing import Any

import torch
from lightning.pytorch import Callback

from tests.processes import start


def run_ranks(module: str, *arguments: str, ranks: int = 2, timeout: float = 240) -> None:
    """Run a module once for each rank; raise when one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [start(module, *arguments, RANK=str(rank), **shared) for rank in range(ranks)]
    deadline = time.monotonic() + timeout
    try:
        while None in (codes := [process.poll() for process in processes]):
            if any(codes):  # a rank that failed leaves others waiting for it
                break
            assert time.monotonic() < deadline, f"{module}: not over after {timeout:g} s"
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    for process, code in zip(processes, codes, strict=True):
        assert not code, process.communicate()[1]


class EqualRanks(Callback):
    """Fails a run whose ranks end with different parameters."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        everyone = [torch.empty_like(mine) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(everyone, mine)
        assert all(torch.equal(mine, other) for other in everyone), "ranks have drifted apart"


class FastWatch(Callback):
    """Lets every rank but the first count its seconds 30 % too fast."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.global_rank:
            pl_module.clock._now = lambda: 1.3 * time.monotonic()


class PoisonRank(Callback):
    """Gives one rank a NaN loss."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            with torch.no_grad():
                next(pl_module.model.parameters()).fill_(float("nan"))


class SlowEnd(Callback):
    """Makes the first rank's conclusion take longer than the grace period for lost ranks."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            from jepa_lm.commands import train as training
            from jepa_lm.training import distributed

            distributed.GRACE_SECONDS = 1.0
            conclude = training._conclude

            def slow(*arguments: Any) -> None:
                time.sleep(4)
                conclude(*arguments)

            training._conclude = slow
