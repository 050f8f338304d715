"""Screen output: progress bars on stderr during long work, results once they are recorded."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from jepa_lm.utils.errors import warn
from jepa_lm.utils.output import suppressed, tell
from jepa_lm.utils.quoting import literal
from jepa_lm.utils.waiting import LINE_EVERY, how_far, repeating

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


class Percent(Words):
    """The share of a task that is done, if its size is known."""

    def render(self, task: Task) -> Text:
        """Return the share in percent; nothing for a task of unknown size."""
        return Text() if task.total is None else super().render(task)


@contextmanager
def bars(what: str) -> Iterator[Progress]:
    """Show several progress bars, which disappear when all work is done.

    Without a terminal, a line on stderr says every 30 seconds how far the whole work is.

    Args:
        what: the work, for these lines.
    """
    console, began = Screen(stderr=True), time.monotonic()
    progress = Progress(
        Words("{task.description}"),
        BarColumn(),
        Percent("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def say_how_far() -> None:
        total = sum(task.total or 0.0 for task in progress.tasks)
        share = sum(task.completed for task in progress.tasks) / total if total else None
        tell(how_far(what, share, time.monotonic() - began))

    lines = nullcontext() if console.is_terminal else repeating(LINE_EVERY, say_how_far)
    with progress, lines:
        yield progress


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show that work of unknown length is under way, as `bars` does."""
    with bars(what) as progress:
        progress.add_task(what, total=None)
        yield


def shown(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Yield the items, with a progress bar."""
    with bars(description) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)
