"""Bars on stderr while something takes long; nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")


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
