"""Watches for losses and gradients that are no numbers, without waiting for the device at each step.

Values of every step are kept where they were computed and read together at log points and before a
checkpoint, so the report names the step, the component and the rank that came first. What a checkpoint will
hold is looked at before it is written: the last update may have spoilt it without another loss to show it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_lm.utils.errors import EveryRankError, UserError, warn

MOST = 1 << 14
"""Values that wait to be read, where log points are far apart."""


class Finding(NamedTuple):
    """A value that is no number."""

    step: int
    name: str
    value: float
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.name} is {self.value} at step {self.step}"


class FiniteGuard:
    """Looks at what a run computes.

    Args:
        skip: leave out up to this many steps whose gradient is no number, then stop. That asks the
            device for an answer at every step; 0 does not.

    Raises:
        UserError: a negative number.
    """

    def __init__(self, *, skip: int) -> None:
        if skip < 0:
            raise UserError(f"guard.skip={skip}: 0 or more")
        self.skip = skip
        self.skipped = 0
        self._seen: list[tuple[int, str, Tensor]] = []
        self._found: Finding | None = None

    def see(self, step: int, name: str, value: Tensor) -> None:
        """Keep a scalar, detached, until it is read."""
        self._seen.append((step, name, value.detach()))
        if len(self._seen) == MOST:
            self._read()

    def look(self, step: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Look at all values of named tensors, in few reductions; waits for the device.

        Args:
            step: after which they are looked at.
        """
        if self._seen:
            self._read()  # what came first is told
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
        """The first value that is no number since the last call; waits for the device."""
        if self._seen:
            self._read()
        found, self._found = self._found, None
        return found

    def skips(self, step: int, gradient: Tensor, rank: int) -> bool:
        """Whether a step is to be left out; waits for the device, so only for `skip` above 0.

        Every rank decides alike: gradients are averages over ranks.
        """
        if self.skipped >= self.skip or math.isfinite(gradient.item()):
            return False
        self.skipped += 1
        found = self.first()
        if found is not None and (rank == 0 or found.name != "gradient"):
            where = _on_rank(found._replace(rank=rank))
            warn(f"{where}: this step is left out ({self.skipped} of guard.skip={self.skip})")
        return True


def _on_rank(found: Finding) -> str:
    return f"{found} on rank {found.rank}"


def report(findings: list[Finding], checkpoint: Path | None, *, ranks: int) -> EveryRankError:
    """The error that ends a run, about the earliest finding; a loss comes before the gradient it makes."""
    first = min(findings, key=lambda f: (f.step, f.name == "gradient", f.rank))
    where = _on_rank(first) if ranks > 1 else str(first)
    return EveryRankError(
        f"{where}: training stopped; lower the learning rates (optimizer.groups.*.lr), set "
        "trainer.gradient_clip_val, or leave such steps out with guard.skip=N; the last checkpoint "
        f"before it is {checkpoint or 'none yet'}"
    )
