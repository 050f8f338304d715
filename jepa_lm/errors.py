"""Errors that a user can mend, and warnings. Entry points print each as one line; see `exit_code`."""

from __future__ import annotations

import errno

from jepa_lm.streams import tell


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


DISK = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "EIO"),
        *("ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "ELOOP"),
    )
    if hasattr(errno, name)
}
"""Errors of a disk that is full, of a file that is closed to the user, of a name that can be none."""


LONGEST = 300
"""Letters of a path that a message shows."""


def disk_error(error: OSError) -> UserError | None:
    """The same as one line, if it is about the disk."""
    if error.errno not in DISK:
        return None
    name = str(error.filename or "the run folder")
    shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    return UserError(f"{shown}: {error.strerror}")


class EveryRankError(UserError):
    """An error that all ranks of a run have at once, so that one of them tells it."""


class RankError(RuntimeError):
    """A process of a run over several is gone, so the others stopped."""

    exit_code = 4


def warn(text: str) -> None:
    """One line on stderr about something that does not stop a run."""
    tell(f"warning: {' '.join(text.split())}")
