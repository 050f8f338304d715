"""Screen output: progress bars on stderr during long work, results once they are recorded."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from jepa_lm.utils.errors import warn
from jepa_lm.utils.output import suppressed
from jepa_lm.utils.quoting import literal

T = TypeVar("T")


class Screen(Console):
    """Rich's console for text from any source: strings are shown literally, without markup."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """Render a plain string literally; rich calls this for every string, including table cells."""
        settings |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(literal(text), **settings)

    def on_broken_pipe(self) -> None:
        """Raise an ordinary error; rich would exit the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@contextmanager
def showing(what: str) -> Iterator[None]:
    """Wrap the display of results that are already recorded: a failure becomes a warning.

    Characters that the terminal cannot show are replaced.

    Args:
        what: name of what is shown, for the warning.
    """
    try:
        with suppressed(sys.stdout, warn):
            yield
            sys.stdout.flush()
    except Exception as error:  # any error: the results are already on disk
        warn(f"{what} cannot be shown ({type(error).__name__}: {error})")


def as_written(text: str) -> Text:
    """Return text of a user, a file or a model without markup or terminal escape codes."""
    return Text(literal(text, keep="\n\t"))


def panel(lines: Iterable[str], title: str, **settings: Any) -> Panel:
    """Return lines in a frame; rich alone would treat the title as markup."""
    shown = Text("\n".join(literal(line, keep="\t") for line in lines))
    return Panel(shown, title=Text(literal(title)), **settings)


class Words(TextColumn):
    """A text column of a progress bar, shown literally."""

    def render(self, task: Task) -> Text:
        """Return the text literally; rich would treat it as markup."""
        return Text(literal(self.text_format.format(task=task)))


def bars() -> Progress:
    """Return a display of several progress bars that disappears when all work is done."""
    console = Screen(stderr=True)
    return Progress(
        Words("{task.description}"),
        BarColumn(),
        Words("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def shown(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Yield the items, with a progress bar."""
    with bars() as progress:
        yield from progress.track(items, total=total, description=description)
