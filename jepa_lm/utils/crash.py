"""How a command ends: what a user can mend is one line; anything else is a bug of ours, kept in crash.txt.

A bug is what is derived from none of UserError, RankError, HydraException, OmegaConfBaseException,
YAMLError, OSError and MemoryError. Nothing of it is lost: its traceback goes into the run's folder.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import jepa_lm
from jepa_lm.utils.errors import RankError, UserError, memory_error, system_error
from jepa_lm.utils.output import replace_characters, tell

FILE = "crash.txt"
LOGS = Path("logs")
"""Where it is written when there is no run's folder."""
MENDABLE = (UserError, RankError, HydraException, OmegaConfBaseException, YAMLError)
"""What is told in one line."""


class CrashError(RuntimeError):
    """A bug of ours, told in one line that names its crash.txt."""

    exit_code = 70


@contextmanager
def bugs_kept(folder: Path) -> Iterator[None]:
    """Inside, a bug becomes a `CrashError`, and what the system or the memory says a `UserError`.

    Args:
        folder: of the run, for crash.txt.
    """
    try:
        yield
    except (*MENDABLE, CrashError):
        raise
    except OSError as error:
        raise system_error(error) from error
    except Exception as error:
        about_memory = memory_error(error)
        if about_memory is not None:
            raise about_memory from error
        raise _crash(error, folder) from error


def command(call: Callable[[], int | None], folder: Path = LOGS, name: str = "") -> int:
    """Run a command of `python -m`; returns its exit code, with one line on what is wrong.

    Args:
        folder: for crash.txt. name: of the process, in front of what is wrong.
    """
    replace_characters(sys.stdout)
    try:
        with bugs_kept(folder):
            return call() or 0
    except (UserError, RankError, CrashError) as error:
        tell(f"error: {name}{error}")
        return error.exit_code
    except MENDABLE as error:
        tell(f"error: {name}{' '.join(str(error).split())}")
        return UserError.exit_code
    except KeyboardInterrupt:
        tell("interrupted")
        return 130


def _crash(error: Exception, folder: Path) -> CrashError:
    what = f"a bug of jepa_lm ({type(error).__name__}: {' '.join(str(error).split())[:500]})"
    told = "".join(traceback.format_exception(error))
    about = (
        f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} jepa_lm {jepa_lm.__version__}, Python "
        f"{platform.python_version()}, {platform.platform()}\n{shlex.join(sys.argv)}\n"
    )
    for place in (folder, LOGS):
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            # Behind those of earlier attempts and of other ranks.
            with open(place / FILE, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{about}{told}\n")
            return CrashError(f"{what}; please report it with {place / FILE}")
    print(told, file=sys.stderr)
    return CrashError(f"{what}; no {FILE} could be written, its traceback is above")
