"""Errors that the user can fix, and warnings. Entry points print each as one line; see `exit_code`."""

from __future__ import annotations

import os
import re
import sys

from yaml import YAMLError

from jepa_lm.utils.output import tell
from jepa_lm.utils.quoting import cut, one_line


class UserError(ValueError):
    """A setting or a file is wrong: the message names the key, the value and what would be right."""

    exit_code = 2


class OverCapError(UserError):
    """The exported artifact exceeds its byte cap."""

    exit_code = 3


class LossError(UserError):
    """The exported artifact loses more against its checkpoint than is allowed."""


class SweepError(UserError):
    """Some jobs of a sweep failed; the others finished."""

    exit_code = 5


MACHINE = "machine"
"""Cause of a failure: a file, a disk, memory, a lost process; not what the run computed."""
LONGEST = 300
"""Maximum number of characters of a path in a message."""


def system_error(error: OSError) -> UserError:
    """Return a system error about a file, a disk or a connection as a one-line error."""
    if error.strerror is None:
        return UserError(str(error) or type(error).__name__)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    shown = [cut(name, LONGEST) for name in names]
    return UserError(f"{' and '.join(shown) or 'the system'}: {error.strerror}")


def memory_error(error: Exception) -> UserError | None:
    """Return a one-line error if the host or a GPU ran out of memory, else None."""
    torch = sys.modules.get("torch")
    if not (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    ):
        return None
    size = re.search(r"tried to allocate [0-9.]+ \w+", str(error), re.IGNORECASE)
    return UserError(
        f"out of memory{f' ({size[0].lower()})' if size else ''}: lower data.batch_tokens, or raise "
        "trainer.accumulate_grad_batches, or choose a smaller model"
    )


def cause_of(error: BaseException) -> str:
    """Return what ended a run with this error: `machine`, which may be tried again, or else `run`."""
    found: BaseException | None = error
    while found is not None:
        of_machine = isinstance(found, OSError | RankError)
        if of_machine or (isinstance(found, Exception) and memory_error(found) is not None):
            return MACHINE
        found = found.__cause__
    return "run"


def yaml_error(error: YAMLError) -> str:
    """Return the file, the line and the problem in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return one_line(error)
    said = [getattr(error, key) for key in ("context", "problem", "note") if getattr(error, key)]
    return f"{mark.name}, line {mark.line + 1}: {', '.join(said)}"


class EveryRankError(UserError):
    """An error that all ranks of a run raise together, so only one of them reports it."""


class RankError(RuntimeError):
    """A process of a distributed run was lost, so the others stopped."""

    exit_code = 4


def warn(text: str) -> None:
    """Print one line on stderr about something that does not stop the run."""
    tell(f"warning: {' '.join(text.split())}")


def warn_once_per_machine(text: str) -> None:
    """Warn of something that all ranks on this machine find alike: only the first of them says it."""
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if local == "0":
        warn(text)


def in_words(error: BaseException) -> str:
    """Return the description of an error for the run's record."""
    if isinstance(error, OSError):
        return str(system_error(error))
    known = isinstance(error, UserError | RankError)
    return str(error) if known else f"{type(error).__name__}: {error}"
