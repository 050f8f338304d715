"""Detects NaN and infinite losses and gradients without waiting for the device at each step.

The values of every step stay on the device and are read together at log points and before a checkpoint, so
the report names the step, component and rank of the first bad value. The contents of a checkpoint are
checked before it is written: the last update may have broken them, and no later loss shows it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor

from jepa_lm.utils.errors import EveryRankError, warn
from jepa_lm.utils.kinds import Whole, checked

MOST = 1 << 14
"""Maximum number of unread values, for log points that are far apart."""


class Finding(NamedTuple):
    """A value that is NaN or infinite."""

    step: int
    name: str
    value: float
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.name} is {self.value} at step {self.step}"


class FiniteGuard(Callback):
    """Finds NaN and infinite values in a run.

    Args:
        skip: skip up to this many steps whose gradient is NaN or infinite, then stop. Above 0, every step
            waits for the device.

    Raises:
        UserError: `skip` is negative.
    """

    @checked
    def __init__(self, *, skip: Whole) -> None:
        self.skip = skip
        self.skipped = 0
        self._seen: list[tuple[int, str, Tensor]] = []
        self._found: Finding | None = None

    def see(self, step: int, name: str, value: Tensor) -> None:
        """Keep a scalar, detached, until the next read."""
        self._seen.append((step, name, value.detach()))
        if len(self._seen) == MOST:
            self._read()

    def look(self, step: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Check all values of named tensors, in a few reductions; waits for the device.

        Args:
            step: number of the last step taken, for the report.
        """
        if self._seen:
            self._read()  # an earlier finding is reported first
        by_device: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, tensor in tensors:
            if tensor.is_floating_point() and tensor.numel():
                by_device[tensor.device].append((name, tensor.detach()))
        for named in by_device.values():
            largest = torch._foreach_norm([tensor for _, tensor in named], math.inf)
            values = torch.stack([value.double() for value in largest]).tolist()
            for (name, _), value in zip(named, values, strict=True):
                if self._found is None and not math.isfinite(value):
                    self._found = Finding(step, name, value)

    def _read(self) -> None:
        seen, self._seen = self._seen, []
        values = torch.stack([value.float() for _, _, value in seen]).tolist()
        for (step, name, _), value in zip(seen, values, strict=True):
            if self._found is None and not math.isfinite(value):
                self._found = Finding(step, name, value)

    def first(self) -> Finding | None:
        """Return the first NaN or infinite value since the last call, or None; waits for the device."""
        if self._seen:
            self._read()
        found, self._found = self._found, None
        return found

    def skips(self, step: int, gradient: Tensor, rank: int) -> bool:
        """Return whether to skip a step; waits for the device, so call it only for `skip` above 0.

        All ranks decide alike, because gradients are averages over ranks.
        """
        if self.skipped >= self.skip or math.isfinite(gradient.item()):
            return False
        self.skipped += 1
        found = self.first()
        if found is not None and (rank == 0 or found.name != "gradient"):
            where = _on_rank(found._replace(rank=rank))
            warn(f"{where}: this step is skipped ({self.skipped} of guard.skip={self.skip})")
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps that were left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.skipped = state_dict["skipped"]


def _on_rank(found: Finding) -> str:
    return f"{found} on rank {found.rank}"


def report(findings: list[Finding], checkpoint: Path | None, *, ranks: int) -> EveryRankError:
    """Return the error for the earliest finding; within a step a loss comes before its gradient."""
    first = min(findings, key=lambda f: (f.step, f.name == "gradient", f.rank))
    where = _on_rank(first) if ranks > 1 else str(first)
    return EveryRankError(
        f"{where}: training stopped; lower the learning rates (optimizer.groups.*.lr), set "
        "trainer.gradient_clip_val, or skip such steps with guard.skip=N; the last checkpoint "
        f"before it is {checkpoint or 'none yet'}"
    )
