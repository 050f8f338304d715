"""Errors that a user can mend, and warnings. Entry points print each as one line; see `exit_code`."""

from __future__ import annotations

import re
import sys

from yaml import YAMLError

from jepa_lm.utils.output import tell


class UserError(ValueError):
    """A setting or a file is wrong: the message names the key, the value and what would be right."""

    exit_code = 2


class OverCapError(UserError):
    """The exported artifact does not fit the byte budget."""

    exit_code = 3


class LossError(UserError):
    """The exported artifact scores worse than its checkpoint by more than is allowed."""


class SweepError(UserError):
    """Some jobs of a sweep failed; the others are done."""

    exit_code = 5


LONGEST = 300
"""Letters of a path that a message shows."""


def system_error(error: OSError) -> UserError:
    """What the system says about a file, a disk or a connection, as one line."""
    if error.strerror is None:
        return UserError(str(error) or type(error).__name__)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    shown = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in names]
    return UserError(f"{' and '.join(shown) or 'the system'}: {error.strerror}")


def memory_error(error: Exception) -> UserError | None:
    """The same where memory ran out, of the host or of a GPU."""
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


def yaml_error(error: YAMLError) -> str:
    """File, line and what is wrong, in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    said = [getattr(error, key) for key in ("context", "problem", "note") if getattr(error, key)]
    return f"{mark.name}, line {mark.line + 1}: {', '.join(said)}"


class EveryRankError(UserError):
    """An error that all ranks of a run have at once, so that one of them tells it."""


class RankError(RuntimeError):
    """A process of a run over several is gone, so the others stopped."""

    exit_code = 4


def warn(text: str) -> None:
    """One line on stderr about something that does not stop a run."""
    tell(f"warning: {' '.join(text.split())}")


def in_words(error: BaseException) -> str:
    """What the record of a run says about its failure."""
    if isinstance(error, OSError):
        return str(system_error(error))
    known = isinstance(error, UserError | RankError)
    return str(error) if known else f"{type(error).__name__}: {error}"
