"""What is said to the user: it never ends a run that goes on, or one that is over, by failing.

A terminal may be closed (its streams then raise errors), a log's disk may be full, an encoding may lack
characters. What is recorded does not depend on any of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from jepa_lm.utils.quoting import literal

STRICT = ("strict", "surrogateescape")
"""Ways of a stream to treat characters that raise an error where its encoding lacks one."""


def say(text: str) -> None:
    """A line on stdout: a result, which fails where it cannot be written."""
    replace_characters(sys.stdout)
    print(literal(text), flush=True)


def tell(text: str) -> None:
    """A line on stderr, if that can be written to; in a signal handler it may be busy."""
    with suppress(RuntimeError), suppressed(sys.stderr):
        print(literal(text), file=sys.stderr, flush=True)


@contextmanager
def suppressed(
    stream: TextIO | None, warn: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Inside, a stream that cannot be written to is given up; what comes later goes nowhere.

    Args:
        warn: is called about it.
    """
    replace_characters(stream)
    try:
        yield
    except OSError as error:
        give_up(stream)
        warn(f"standard output cannot be written to: {error.strerror or error}")


def replace_characters(stream: TextIO | None) -> None:
    """From now on, characters that the stream's encoding lacks are shown as escapes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and getattr(stream, "errors", None) in STRICT:
        with suppress(OSError, ValueError):
            reconfigure(errors="backslashreplace")


def give_up(stream: TextIO | None) -> None:
    """Lead a stream to nowhere: what it still holds would fail again when the process ends."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()  # type: ignore[union-attr]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
        stream.flush()  # type: ignore[union-attr]
