"""Small exchanges between ranks. Nothing here needs Lightning."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    """Return the number of processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def maximum(*values: float, device: torch.device) -> list[float]:
    """Return the maximum of each value over all ranks, in one collective; synchronizes with the device."""
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return shared.tolist()


def gathered(value: Any) -> list[Any]:
    """Return each rank's value, in rank order; for messages that one rank prints, such as an error."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone
