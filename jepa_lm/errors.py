"""Errors that a user can mend, and warnings. Entry points print each as one line; see `exit_code`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping


class UserError(ValueError):
    """A setting or a file is wrong: the message names the key, the value and what would be right."""

    exit_code = 2


class OverCapError(UserError):
    """The exported artifact does not fit the byte budget."""

    exit_code = 3


class LossError(UserError):
    """The exported artifact scores worse than its checkpoint by more than is allowed."""


def require_finite(step: int, values: Mapping[str, float], checkpoint: str) -> None:
    """Stop a run whose loss is no number, and name the first part that is to blame."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"{name} is {value} at step {step}: training stopped; lower the learning rates "
                "(optimizer.groups.*.lr) or set trainer.gradient_clip_val; the last checkpoint before "
                f"it is {checkpoint or 'none yet'}"
            )


def warn(text: str) -> None:
    """One line on stderr about something that does not stop a run."""
    print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)
