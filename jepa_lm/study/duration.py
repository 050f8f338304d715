"""How long the jobs of a sweep take: how long they took, and how long the others will.

It is said when a job begins, whatever launches the jobs: they are seen by the records in their folders.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa_lm.study.manifest import Job
from jepa_lm.study.runs import Run
from jepa_lm.utils.output import tell
from jepa_lm.utils.paths import CONFIG_FILE, SUMMARY_FILE
from jepa_lm.utils.waiting import about

LOOKS_EVERY = 2.0
"""Seconds between two looks at the folders."""


def duration(folder: Path) -> float | None:
    """Return the seconds that a finished run took, with its validations; None for one that has not finished.

    They are the time between its first record and its last, and never less than its training. Of a run
    that was resumed they are those since then, unless its training alone took longer.
    """
    run, began, ended = Run(folder), _written(folder / CONFIG_FILE), _written(folder / SUMMARY_FILE)
    if not run.finished or began is None or ended is None:
        return None
    return max((ended - began) / 1e9, float(run.summary.get("seconds", 0.0)))


def durations(jobs: Sequence[Job], folder: Path, how: Launching) -> list[float]:
    """Return the seconds that the finished jobs took, each for a cost of 1."""
    took = {job.folder: duration(folder / job.folder) for job in jobs}
    return [seconds / how.cost(run) for run, seconds in took.items() if seconds is not None]


def workers(launcher: Mapping[str, Any]) -> int:
    """Return how many jobs a launcher runs at the same time, by its settings (`hydra.launcher`)."""
    count = int(launcher.get("n_jobs", launcher.get("array_parallelism", 1)) or 1)
    return count if count > 0 else max(1, (os.cpu_count() or 1) + 1 + count)


@dataclass(frozen=True)
class Launching:
    """How the jobs of a sweep are launched."""

    at_once: int
    """Jobs that run at the same time."""
    total: int
    """Jobs of the whole sweep; more than are planned in a search, which plans while it runs."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """What jobs cost, relative to one another, by folder; none: all the same."""
    below: str = ""
    """Folder of the jobs below that of the command, if they have one of their own."""

    def root(self, folder: Path) -> Path:
        """Return the folder of the command, given that of the jobs."""
        return folder.parent if self.below else folder

    def cost(self, run: str) -> float:
        """Return what a job costs."""
        return self.costs.get(run, 1.0)


class JobLines:
    """Says which job of a sweep begins, and about how long the sweep will still take.

    Args:
        jobs: all planned ones. todo: those that are launched, in this order. folder: of the sweep.
        how: how they are launched.
    """

    def __init__(
        self, jobs: Sequence[Job], todo: Sequence[Job], folder: Path, how: Launching
    ) -> None:
        self.todo, self.folder, self.how = todo, folder, how
        self._before = {job.folder: self._stamps(job) for job in todo}
        self._took = durations([job for job in jobs if job not in todo], folder, how)
        self._later = how.total - len(jobs)
        """Jobs that are not planned yet."""
        self._done = len(jobs) - len(todo)
        self._last = -1
        """Place in `todo` of the last job that has begun."""
        self._running: dict[Job, float] = {}
        """When each job that is running was seen to begin."""

    def look(self) -> None:
        """Look at the folders; say so if a job has begun since the last look."""
        now, known = time.monotonic(), self._last
        for place, job in enumerate(self.todo):
            (began, ended), (began_before, ended_before) = (
                self._stamps(job),
                self._before[job.folder],
            )
            if began != began_before and place > self._last:
                self._last = place
                self._running[job] = now
            if job in self._running and ended is not None and ended != ended_before:
                del self._running[job]
                self._took += durations([job], self.folder, self.how)
        if self._last > known and self.how.total > 1:
            job = self.todo[self._last]
            left = "" if not self._took else f", {about(self._left(now))} left"
            tell(f"job {self._done + self._last + 1} of {self.how.total}: {job.folder}{left}")

    def _left(self, now: float) -> float:
        """Return the seconds that the rest of the sweep takes if every job takes the median of the others."""
        usual, cost = statistics.median(self._took), self.how.cost
        waiting = [cost(job.folder) for job in self.todo[self._last + 1 :]] + [1.0] * self._later
        running = [
            max(0.0, usual * cost(job.folder) - (now - began))
            for job, began in self._running.items()
        ]
        at_once = max(1, min(self.how.at_once, len(waiting) + len(running)))
        return (usual * sum(waiting) + sum(running)) / at_once

    def _stamps(self, job: Job) -> tuple[int | None, int | None]:
        """Return when a job's first and last record were written."""
        folder = self.folder / job.folder
        return _written(folder / CONFIG_FILE), _written(folder / SUMMARY_FILE)


def _written(path: Path) -> int | None:
    """Return when a file was written, in nanoseconds; None if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
