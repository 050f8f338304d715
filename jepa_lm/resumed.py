"""Where a resumed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Resumed(NamedTuple):
    """A checkpoint that a run goes on from."""

    path: Path
    step: int
    """Optimizer steps that are done."""
    validated: bool
    """The validation after that step is recorded already, as far as this process sees."""
