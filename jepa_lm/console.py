"""What is shown: bars on stderr while something takes long, results when it is over and recorded."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from jepa_lm.errors import warn
from jepa_lm.streams import suppressed

T = TypeVar("T")


class Screen(Console):
    """Rich's console for what others wrote as well: strings are shown as they are, without markup."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **settings})

    def on_broken_pipe(self) -> None:
        """An error like any other; Rich would end the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@contextmanager
def showing(what: str) -> Iterator[None]:
    """Around what is shown of a record that is complete: it can fail alone, with a warning.

    Characters that the terminal lacks are replaced.

    Args:
        what: is shown, for the warning.
    """
    try:
        with suppressed(sys.stdout, warn):
            yield
            sys.stdout.flush()
    except Exception as error:  # whatever it is, what was reached is on the disk
        warn(f"{what} cannot be shown ({type(error).__name__}: {error})")


def as_written(text: str) -> Text:
    """A text of a user, a file or a model: no markup, and no codes that a terminal would obey."""
    return Text("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))


def bars() -> Progress:
    """Several bars, one below the other; they vanish when all is done."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def shown(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """The same items, with a bar of how many of them are done."""
    with bars() as progress:
        yield from progress.track(items, total=total, description=description)
