"""Where in a run a loss is computed, and the random draws that belong there.

A draw is a function of the seed, the optimizer step, the micro-batch and its purpose, so a resumed
run repeats it, and all ranks share it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from jepa_lm.optim.clock import ProgressClock


@dataclass(frozen=True)
class Moment:
    """A micro-batch of a run.

    Args:
        clock: progress of the run. micro_batch: index within the optimizer step.
        rank, world_size: which process this is, of how many.
        joint: statistics over rows are those of all ranks' rows, see `jepa_lm.objective.statistics`.
    """

    clock: ProgressClock
    micro_batch: int = 0
    rank: int = 0
    world_size: int = 1
    joint: bool = False

    def generator(self, seed: int, purpose: str) -> torch.Generator:
        """Random numbers of this micro-batch for one purpose, on the CPU."""
        key = f"{seed}/{self.clock.step}/{self.micro_batch}/{purpose}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
