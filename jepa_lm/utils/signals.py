"""Signals that ask a run to stop: it ends after the step it is in, on every rank after the same one.

Ctrl-C (SIGINT) validates and saves; what clusters send before they kill (SIGTERM, SIGUSR1, SIGUSR2) and
what a terminal sends that is closed (SIGHUP) saves alone. A handler only notes the signal: the training
loop acts on it, several ranks after they have agreed on it together with the clock.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jepa_lm.utils.errors import warn
from jepa_lm.utils.output import tell

NAMES = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM")
"""By urgency; a rank that got a more urgent one decides for all. Not every system has all of them."""
Handler = Callable[[int, FrameType | None], Any]


class Stopped(BaseException):
    """A run has ended early and has saved its state.

    Not an `Exception`: what handles failures must not take it for one.

    Args:
        signum: the signal that asked for it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class StopRequest:
    """What was asked of this process, and what the ranks have agreed on."""

    def __init__(self) -> None:
        self.asked = 0
        """1 + place in `NAMES` of the most urgent signal so far; 0 without one."""
        self.agreed = 0
        """The same for all ranks."""
        self.over = False
        """Training is over and its state saved: from now on a signal stops at once."""

    @property
    def signum(self) -> int | None:
        """The signal that ends the run, None while none does."""
        return int(getattr(signal, NAMES[self.agreed - 1])) if self.agreed else None

    @property
    def hurried(self) -> bool:
        """A kill will follow: no time for a validation."""
        return self.agreed > 1

    @contextmanager
    def listening(self, *, speak: bool) -> Iterator[None]:
        """Note signals while inside; a second Ctrl-C stops at once.

        A handler that was there before gets a pre-emption signal afterwards, when the state is saved:
        a job launcher requeues the job in it.

        Args:
            speak: tell the user what happens now (one rank is enough).
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may listen
            return

        def note(signum: int, frame: FrameType | None) -> None:
            name = signal.Signals(signum).name
            if name == "SIGINT" and (self.asked or self.over):
                raise KeyboardInterrupt
            if self.over:
                sys.exit(128 + signum)
            urgency = 1 + NAMES.index(name)
            if speak and urgency > self.asked:
                after = "and a validation; Ctrl-C again stops at once" if urgency == 1 else ""
                tell(f"{name}: stopping after this step {after}".rstrip())
            self.asked = max(self.asked, urgency)

        known = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        # `nohup` starts a program with this one ignored, so that it outlives its terminal.
        known = [s for s in known if s.name != "SIGHUP" or signal.getsignal(s) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, note) for signum in known}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        if self.hurried:
            assert self.signum is not None
            handler = before[signal.Signals(self.signum)]
            if callable(handler):
                warn(f"state saved; passing {signal.Signals(self.signum).name} on")
                handler(self.signum, None)
