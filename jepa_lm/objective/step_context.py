"""Position in a run at which a loss is computed, and the random draws made there.

A draw is a function of the seed, the optimizer step, the micro-batch and its purpose, so a resumed
run repeats it. All ranks share it, unless each has its own draws; then it also depends on the rank.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from jepa_lm.schedules.clock import ProgressClock


@dataclass(frozen=True)
class StepContext:
    """Position of a micro-batch in a run.

    Args:
        clock: progress of the run. micro_batch: index within the optimizer step.
        rank, world_size: index of this process, and number of processes.
        per_rank: each rank makes its own draws; rank 0 makes those that all would share.
        joint: compute statistics over the rows of all ranks, see `jepa_lm.objective.statistics`.
    """

    clock: ProgressClock
    micro_batch: int = 0
    rank: int = 0
    world_size: int = 1
    per_rank: bool = False
    joint: bool = False

    def generator(self, seed: int, purpose: str) -> torch.Generator:
        """Return the random generator of this micro-batch for one purpose, on the CPU."""
        place = f"/rank {self.rank}" if self.per_rank and self.rank else ""
        key = f"{seed}/{self.clock.step}/{self.micro_batch}/{purpose}{place}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
