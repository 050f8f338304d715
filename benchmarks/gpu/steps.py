"""Runs a step of the kit as a process that can be killed with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.results import Line, parsed

if TYPE_CHECKING:
    from benchmarks.gpu.scale import Scale
    from benchmarks.measure import Claim

NO_CUDA = 2
"""Exit code without a CUDA device."""
NO_CUDA_IN_STEP = 77
"""The same, of a step's process: 2 is also the code of a mistyped option."""


@dataclass(frozen=True)
class Step:
    """A step of the kit.

    Args:
        claims: yields what it measures. seconds: it is killed after this long.
        least: it is not begun with fewer seconds left. usual: it runs without being asked for.
    """

    claims: Callable[[Scale], Iterator[Claim]]
    seconds: float
    least: float = 20.0
    usual: bool = True


def run_process(
    command: Sequence[str], *, seconds: float, log: Path, take: Callable[[Line], None]
) -> tuple[int, str]:
    """Run a command that prints JSON objects, and kill its process group when its time is over.

    The programs of this project save their state upon SIGTERM, which may take long, so it is SIGKILL.

    Args:
        log: gets what the command writes to stderr. take: gets each object as it comes.

    Returns:
        The exit code, and why the command failed, empty if it did not.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    cache = str(log.parent / "inductor")
    environment = {"TORCHINDUCTOR_CACHE_DIR": cache, **os.environ, "PYTHONUNBUFFERED": "1"}
    cut_off = threading.Event()
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )

        def cut() -> None:
            cut_off.set()
            kill_group(process.pid)

        timer = threading.Timer(seconds, cut)
        timer.start()
        try:
            assert process.stdout is not None
            for text in process.stdout:
                line = parsed(text)
                if line is not None:
                    take({**line, "at": round(time.monotonic() - began, 1)})
            code = process.wait()
        finally:
            timer.cancel()
            kill_group(process.pid)
            process.wait()
    if cut_off.is_set():
        return code, f"cut off after {seconds:.0f} s"
    return code, "" if code == 0 else f"exit code {code}: {_last_line(log)} (see {log})"


def kill_group(leader: int) -> None:
    """Kill a process group, if there is anything left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_with_parent() -> None:
    """End this process and its group once the process that started it is gone, however it ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        kill_group(os.getpgrp())

    if os.getpgrp() == os.getpid():  # a group of its own
        threading.Thread(target=watch, daemon=True).start()


def end_upon_sigterm() -> None:
    """Turn SIGTERM into an exit, so that the running step is killed on the way out."""

    def leave(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "no message")
