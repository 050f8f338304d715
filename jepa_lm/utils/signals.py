"""Signals that ask a run to stop: it ends after the current step, the same step on every rank.

Ctrl-C (SIGINT) validates and saves; the signals that clusters send before a kill (SIGTERM, SIGUSR1, SIGUSR2)
and that a closed terminal sends (SIGHUP) only save. A handler only records the signal: the training loop acts
on it, with several ranks after they have agreed on it together with the clock.
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
"""Sorted by urgency; the most urgent signal of any rank decides for all. Some systems lack some."""
Handler = Callable[[int, FrameType | None], Any]


class Stopped(BaseException):
    """A run ended early and saved its state.

    Not an `Exception`, so that code that handles failures does not catch it.

    Args:
        signum: the signal that stopped the run.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class StopRequest:
    """The stop that was requested from this process, and the one that the ranks agreed on."""

    def __init__(self) -> None:
        self.asked = 0
        """1 + index in `NAMES` of the most urgent signal so far; 0 if there was none."""
        self.agreed = 0
        """Like `asked`, for all ranks."""
        self.over = False
        """True once training is over and its state saved: from then on a signal stops immediately."""

    @property
    def signum(self) -> int | None:
        """Number of the signal that ends the run, or None."""
        return int(getattr(signal, NAMES[self.agreed - 1])) if self.agreed else None

    @property
    def asked_signum(self) -> int | None:
        """Number of the signal that this process has got, or None."""
        return int(getattr(signal, NAMES[self.asked - 1])) if self.asked else None

    @property
    def hurried(self) -> bool:
        """True if a kill will follow, so that there is no time for a validation."""
        return self.agreed > 1

    @contextmanager
    def listening(self, *, speak: bool) -> Iterator[None]:
        """Record signals inside the block; a second Ctrl-C stops immediately.

        A preemption signal is passed to the earlier handler afterwards, when the state is saved: a job
        launcher's handler requeues the job.

        Args:
            speak: print what happens (one rank is enough).
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set signal handlers
            return

        def note(signum: int, frame: FrameType | None) -> None:
            name = signal.Signals(signum).name
            if name == "SIGINT" and (self.asked or self.over):
                raise KeyboardInterrupt
            if self.over:
                sys.exit(128 + signum)
            urgency = 1 + NAMES.index(name)
            if speak and urgency > self.asked:
                after = "and a validation; Ctrl-C again stops immediately" if urgency == 1 else ""
                tell(f"{name}: stopping after this step {after}".rstrip())
            self.asked = max(self.asked, urgency)

        known = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        # `nohup` starts a program with SIGHUP ignored, so that it outlives its terminal.
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
