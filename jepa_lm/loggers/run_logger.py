"""What a logger of ours can do beside metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Ending(NamedTuple):
    """How a run ended."""

    status: str
    """finished, failed or interrupted, as in summary.json."""
    exit_code: int
    preempted: bool = False
    """A cluster took the machine away; it will start the run again."""


class RunLogger:
    """A logger that keeps what a run ends with, and that we close. Each method may do nothing."""

    def goes_on(self, step: int) -> None:
        """The run goes on after this many steps: what was kept of later ones will come again."""

    def log_summary(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Keep a run's final figures, and copies of the small files that hold them."""

    def log_artifact(self, name: str, files: Sequence[Path]) -> None:
        """Keep a version of a model, under a name."""

    def close(self, ending: Ending) -> None:
        """Write out everything; the logger is not used any more."""
