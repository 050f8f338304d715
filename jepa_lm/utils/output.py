"""Messages to the user, which must not make a run fail.

The terminal may be closed (its streams then raise errors), the disk of a log may be full, or the encoding may
lack characters. What a run records does not depend on any of these.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from jepa_lm.utils.quoting import literal

STRICT = ("strict", "surrogateescape")
"""Error handlers of a stream that raise an error for characters that its encoding lacks."""


def say(text: str) -> None:
    """Print a result on stdout; raises an error if it cannot be written."""
    replace_characters(sys.stdout)
    print(literal(text), flush=True)


def tell(text: str) -> None:
    """Print a line on stderr if possible; in a signal handler the stream may be busy."""
    with suppress(RuntimeError), suppressed(sys.stderr):
        print(literal(text), file=sys.stderr, flush=True)


@contextmanager
def suppressed(
    stream: TextIO | None, warn: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Give up a stream that cannot be written to inside the block; later output is discarded.

    Args:
        warn: is called with the reason.
    """
    replace_characters(stream)
    try:
        yield
    except OSError as error:
        give_up(stream)
        warn(f"standard output cannot be written to: {error.strerror or error}")


def replace_characters(stream: TextIO | None) -> None:
    """Let a stream show characters that its encoding lacks as escapes from now on."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and getattr(stream, "errors", None) in STRICT:
        with suppress(OSError, ValueError):
            reconfigure(errors="backslashreplace")


def give_up(stream: TextIO | None) -> None:
    """Redirect a stream to the null device, or its buffer would raise again when the process ends."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()  # type: ignore[union-attr]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
        stream.flush()  # type: ignore[union-attr]
