"""What is said on stderr while work takes long: how far it is, and about how long it will still take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

LINE_EVERY = 30.0
"""Seconds between the lines that stand in for a progress bar if there is no terminal."""


def about(seconds: float) -> str:
    """Return a duration in words: `about 40 seconds`, `about 5 minutes`, `about 2.5 hours`."""
    if seconds < 95:
        return f"about {max(5, 5 * round(seconds / 5))} seconds"
    if seconds < 95 * 60:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def how_far(what: str, share: float | None, seconds: float) -> str:
    """Return a line that says how far some work is.

    Args:
        share: of the work that is done, in [0, 1]; None if it is not known. seconds: that this took.
    """
    if share is None:
        return f"{what}, for {about(seconds)} so far"
    left = f"  {about(seconds * (1 - share) / share)} left" if share > 0 else ""
    return f"{what} {share:4.0%}{left}"


@contextmanager
def repeating(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call a function in a thread of its own after every so many seconds, while the block runs."""
    over = Event()

    def run() -> None:
        while not over.wait(seconds):
            call()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
