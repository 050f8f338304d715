"""SIGKILL at chosen moments: work is repeated in forked children until one of them finishes.

Children are forked after the imports, which are most of a start. `tests.kills` defines the work.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from lightning.fabric.loggers.csv_logs import _ExperimentWriter

from jepa_lm.loggers.metrics_csv import _AppendingWriter
from jepa_lm.training.module import LanguageModelTask

KILLED = -signal.SIGKILL
LOST_RANK = 4
"""Exit code of a run whose other rank was killed."""
START, STEP = 1.0, 0.2
"""Seconds within which a start is killed, and the most that a step takes."""


class Plan(NamedTuple):
    """When a child dies.

    `start`: within `START` seconds. `step`: shortly after its step `number`. `validation`: before batch
    `number` of its validation. `rows`: with half a row of metrics.csv on the disk. `half`, `complete`: a file
    is half written, or whole but not yet named. `named`: a file has its name, but is not last.ckpt yet.
    `linked`: it has a second name, but not last.ckpt. `kept`: it is last.ckpt, and older ones are still
    there. `other`: another rank dies, after step `number`.
    """

    kind: str
    number: int = 1
    """Which of these moments, counted from 1."""
    share: float = 0.5
    """Fraction of `START` or `STEP` to wait."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def until_done(work: Callable[[], object], plans: Iterable[Plan]) -> list[tuple[str, int]]:
    """Do the work in a child for each plan, and finally in one that is not killed.

    Returns:
        for each child, what should kill it and its exit status.
    """
    history = []
    for plan in (*plans, None):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            import faulthandler

            faulthandler.dump_traceback_later(600, exit=True)  # ends a child that hangs
            code = 1
            try:
                if plan is not None:
                    arm(plan)
                code = int(work() or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        history.append(("nothing" if plan is None else plan.kind, status))
        assert status in (0, KILLED, LOST_RANK), history
    return history


def arm(plan: Plan) -> None:
    """Make this process die as planned."""
    left = [plan.number]

    def now() -> bool:
        """Return whether this is the moment."""
        left[0] -= 1
        return left[0] == 0

    if plan.kind == "start":
        _later(plan.share * START)
    elif plan.kind in ("step", "other"):
        act = (lambda: _later(plan.share * STEP)) if plan.kind == "step" else _other
        _before(LanguageModelTask, "lr_scheduler_step", now, act)
    elif plan.kind == "validation":
        _before(LanguageModelTask, "validation_step", now, die)
    elif plan.kind == "rows":
        _in_rows(now)
    else:
        _in_write(plan.kind, now)


def _later(seconds: float) -> None:
    timer = threading.Timer(seconds, die)
    timer.daemon = True
    timer.start()


def _before(owner: type, name: str, now: Callable[[], bool], act: Callable[[], object]) -> None:
    """Call `act` before a call of a method if `now()` says so."""
    original = getattr(owner, name)

    def wrapped(self, *arguments, **settings):
        if now():
            act()
        return original(self, *arguments, **settings)

    setattr(owner, name, wrapped)


def _other() -> None:
    """Kill the rank that this process has started; this process must notice by itself."""
    children = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)


def _in_rows(now: Callable[[], bool]) -> None:
    save = _ExperimentWriter.save

    def saves(self) -> None:
        waiting, path = bool(self.metrics), Path(self.metrics_file_path)
        save(self)
        if waiting and now():
            os.truncate(path, path.stat().st_size - 7)
            die()

    _AppendingWriter.save = saves  # type: ignore[method-assign]


def _in_write(kind: str, now: Callable[[], bool]) -> None:
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink

    def on_fsync(descriptor: int) -> None:
        if kind == "half" and now():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        fsync(descriptor)
        if kind == "complete" and now():
            die()

    def on_replace(source: Path, target: Path) -> None:
        last = Path(target).name == "last.ckpt"
        if kind == "linked" and last and now():
            die()
        replace(source, target)
        if kind == "named" and not last and now():
            die()

    def on_unlink(path: Path, missing_ok: bool = False) -> None:
        if kind == "kept" and path.name.startswith("step-") and now():
            die()
        unlink(path, missing_ok=missing_ok)

    os.fsync, os.replace, Path.unlink = on_fsync, on_replace, on_unlink  # type: ignore
