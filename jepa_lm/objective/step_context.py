"""Position in a run at which a loss is computed, and the random draws made there.

A draw is a function of the seed, the optimizer step, the micro-batch and its purpose, so a resumed
run repeats it. All ranks share it, unless each has its own draws; then it also depends on the rank.

Draws are made on the CPU, which a compiled loss cannot do. Before it is called, `AuxiliaryLoss.draw`
makes them all; elsewhere a part draws when it needs to. The numbers are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from jepa_lm.model import Encoded
from jepa_lm.schedules.clock import ProgressClock

Draws: TypeAlias = tuple[Tensor, ...]
"""What one part has drawn for a micro-batch, on the device of the batch."""


@dataclass(frozen=True)
class StepContext:
    """Position of a micro-batch in a run.

    Args:
        clock: progress of the run. micro_batch: index within the optimizer step.
        rank, world_size: index of this process, and number of processes.
        per_rank: each rank makes its own draws; rank 0 makes those that all would share.
        joint: compute statistics over the rows of all ranks, see `jepa_lm.objective.statistics`.
        places: draws made before the loss, by the name of the part. drawn: those of the part being called.
        without: keys of auxiliary losses that are left out in this phase.
        related: which rows [B, B] are of one document, for the draws of a placebo; None if unknown.
        passes: passes that another loss reads, too, by place: the main pass beside each, and itself.
    """

    clock: ProgressClock
    micro_batch: int = 0
    rank: int = 0
    world_size: int = 1
    per_rank: bool = False
    joint: bool = False
    places: Mapping[str, Draws] = field(default_factory=dict)
    drawn: Draws = ()
    without: frozenset[str] = frozenset()
    related: Tensor | None = None
    passes: dict[str, tuple[Encoded, Encoded]] = field(default_factory=dict)

    @classmethod
    def at_start(cls) -> StepContext:
        """Return the context of a run's first micro-batch, to look at a loss without a run."""
        return cls(ProgressClock(max_steps=1, max_time=None))

    def at(self, place: str) -> StepContext:
        """Return the context of a part: its own draws, if they have been made."""
        return replace(self, drawn=self.places.get(place, ()))

    def generator(self, seed: int, purpose: str) -> torch.Generator:
        """Return the random generator of this micro-batch for one purpose, on the CPU."""
        place = f"/rank {self.rank}" if self.per_rank and self.rank else ""
        key = f"{seed}/{self.clock.step}/{self.micro_batch}/{purpose}{place}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Move what was drawn on the CPU, without waiting for the device."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


@torch.compiler.disable  # a compiler would treat a draw on the host as a constant
def draw_now(draw: Callable[..., Draws], *arguments: object) -> Draws:
    """Draw inside a loss, which breaks the graph of a compiled one."""
    return draw(*arguments)
