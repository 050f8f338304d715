"""The interface of our loggers beyond metrics: resume, summary, model versions, close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Ending(NamedTuple):
    """How a run ended."""

    status: str
    """`finished`, `failed` or `interrupted`, as in summary.json."""
    exit_code: int
    preempted: bool = False
    """True if a cluster preempted the run and will start it again."""


class RunLogger:
    """A logger that also keeps the results of a run and is closed by us. Each method may do nothing."""

    def goes_on(self, step: int) -> None:
        """Prepare for a run that resumes after this many steps: records of later steps will be repeated."""

    def log_summary(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Keep a run's final figures, and copies of the small files that hold them."""

    def log_artifact(self, name: str, files: Sequence[Path]) -> None:
        """Keep a version of a model under a name."""

    def close(self, ending: Ending) -> None:
        """Write everything out; the logger is not used afterwards."""
