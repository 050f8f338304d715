"""About how long runs would take, judged by a finished run of this folder of logs that is most like them.

    seconds = FLOPs of the run / (FLOPs of the finished run / its seconds of training) + the rest of its time

The rest is its start, compilation and validations, which are taken to be the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jepa_lm.study.duration import duration
from jepa_lm.study.runs import Run, find_runs
from jepa_lm.utils.nested import at

ALIKE = (
    ("trainer", "devices"),
    ("trainer", "num_nodes"),
    ("trainer", "precision"),
    ("model", "backbone", "_target_"),
)
"""Settings on which the FLOPs per second depend, besides compilation."""
LEAST_SECONDS = 10.0
"""Of training, below which a run measures its first steps and says nothing of a run `MOST_TIMES` as large."""
MOST_TIMES = 10
LARGEST_RATIO = 4.0
"""Of the FLOPs per token of two models; beyond it, the FLOPs per second of one say nothing of the other."""


@dataclass(frozen=True)
class Known:
    """A finished run whose FLOPs and time are known."""

    run: Run
    flops_per_token: float
    tokens: int
    seconds: float
    """Of training."""

    @cached_property
    def flops(self) -> float:
        """FLOPs of the run."""
        return self.flops_per_token * self.tokens

    def takes(self, flops: float) -> float:
        """Return about how many seconds a run of so many FLOPs takes, with its start and validations."""
        whole = duration(self.run.folder) or self.seconds
        return self.seconds * flops / self.flops + whole - self.seconds

    def distance(self, config: Mapping[str, Any], flops_per_token: float) -> float:
        """Return how unlike a run with this config it is: its size and budget in e-foldings, its settings.

        A run on another device is infinitely far, and so is a short one from a large one, or another size.
        """
        elsewhere = (
            at(self.run.config, "trainer", "accelerator") != config["trainer"]["accelerator"]
        )
        large = flops_per_token * _tokens(config) > MOST_TIMES * self.flops
        size = abs(math.log(self.flops_per_token / flops_per_token))
        if elsewhere or size > math.log(LARGEST_RATIO) or (large and self.seconds < LEAST_SECONDS):
            return math.inf
        budget = abs(math.log(self.tokens / _tokens(config)))
        others = sum(at(self.run.config, *k) != at(config, *k) for k in ALIKE)
        compiled = bool(self.run.summary.get("compiled")) != bool(config["compile"])
        return size + budget + others + compiled


def known_runs(logs: Path) -> list[Known]:
    """Return the finished runs below a folder whose FLOPs are recorded."""
    found = []
    for run in find_runs(logs):
        record = run.summary
        counted = sum(record.get("flops_per_token", {}).values())
        tokens, seconds = record.get("tokens", 0), record.get("seconds", 0.0)
        if run.finished and min(counted, tokens, seconds) > 0:
            found.append(Known(run, counted, tokens, seconds))
    return found


def forecast(
    config: Mapping[str, Any], flops_per_token: float, known: Iterable[Known]
) -> tuple[float, Path] | None:
    """Return about how many seconds a run takes, and the folder of the run that says so; None if none does.

    Args:
        config: resolved, with a budget in steps.
    """
    far = {run: run.distance(config, flops_per_token) for run in known}
    nearest = min(far, key=far.__getitem__, default=None)
    if nearest is None or math.isinf(far[nearest]):
        return None
    seconds = nearest.takes(flops_per_token * _tokens(config))
    limit = config["trainer"]["max_time"]
    return (seconds if limit is None else min(seconds, limit)), nearest.run.folder


def _tokens(config: Mapping[str, Any]) -> int:
    return int(config["trainer"]["max_steps"] * config["data"]["batch_tokens"])
