"""How a command fails: an error that the user can fix is one line; any other is a bug, kept in crash.txt.

A bug is any exception other than UserError, RankError, HydraException, OmegaConfBaseException, YAMLError,
OSError and MemoryError. Its full traceback is written to crash.txt in the run folder.
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
from jepa_lm.utils.paths import LOGS
from jepa_lm.utils.quoting import one_line

FILE = "crash.txt"
MENDABLE = (UserError, RankError, HydraException, OmegaConfBaseException, YAMLError)
"""Errors that the user can fix; they are printed as one line."""


class CrashError(RuntimeError):
    """A bug in jepa_lm, printed as one line that names its crash.txt."""

    exit_code = 70


@contextmanager
def bugs_kept(folder: Path) -> Iterator[None]:
    """Turn a bug inside the block into a `CrashError`, and a system or memory error into a `UserError`.

    Args:
        folder: the run folder, for crash.txt.
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
    """Run a command of `python -m`, print an error as one line, and return the exit code.

    Args:
        folder: for crash.txt, which goes to `LOGS` otherwise. name: of the process, printed before the error.
    """
    replace_characters(sys.stdout)
    try:
        with bugs_kept(folder):
            return call() or 0
    except (UserError, RankError, CrashError) as error:
        tell(f"error: {name}{error}")
        return error.exit_code
    except MENDABLE as error:
        tell(f"error: {name}{one_line(error)}")
        return UserError.exit_code
    except KeyboardInterrupt:
        tell("interrupted")
        return 130


def _crash(error: Exception, folder: Path) -> CrashError:
    what = f"a bug in jepa_lm ({type(error).__name__}: {one_line(error)[:500]})"
    told = "".join(traceback.format_exception(error))
    about = (
        f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} jepa_lm {jepa_lm.__version__}, Python "
        f"{platform.python_version()}, {platform.platform()}\n{shlex.join(sys.argv)}\n"
    )
    for place in (folder, LOGS):
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            # Append: earlier attempts and other ranks may have written here.
            with open(place / FILE, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{about}{told}\n")
            return CrashError(f"{what}; please report it and attach {place / FILE}")
    print(told, file=sys.stderr)
    return CrashError(f"{what}; {FILE} could not be written, the traceback is above")
