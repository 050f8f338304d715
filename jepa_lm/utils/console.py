"""What is shown: bars on stderr while something takes long, results when it is over and recorded."""

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
    """Rich's console for what others wrote as well: strings are shown as they are, without markup."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """Every text that is no `Text` comes through here, cells of tables as well."""
        settings |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(literal(text), **settings)

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
    return Text(literal(text, keep="\n\t"))


def panel(lines: Iterable[str], title: str, **settings: Any) -> Panel:
    """Lines in a frame; rich itself takes a title for markup."""
    shown = Text("\n".join(literal(line, keep="\t") for line in lines))
    return Panel(shown, title=Text(literal(title)), **settings)


class Words(TextColumn):
    """A column of a bar, as it is."""

    def render(self, task: Task) -> Text:
        """Rich would take it for markup."""
        return Text(literal(self.text_format.format(task=task)))


def bars() -> Progress:
    """Several bars, one below the other; they vanish when all is done."""
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
    """The same items, with a bar of how many of them are done."""
    with bars() as progress:
        yield from progress.track(items, total=total, description=description)
