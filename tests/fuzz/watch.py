"""Everything that a reader does besides reading: audit events, output, time and memory."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from jepa_lm.utils.memory import PeakMemory
from tests.artifact.hostile import HANG, MOST_BYTES, SECRET
from tests.fuzz.mutations import BAIT

RUNS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "pty.spawn", "os.startfile", "webbrowser.open", "socket.connect", "socket.bind", "socket.getaddrinfo",
    "urllib.Request", "ctypes.dlopen", "os.kill",
)  # fmt: skip
"""Audit events of programs, connections and libraries, none of which a file may cause."""
CHANGES = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.truncate", "os.utime", "os.chdir", "shutil.rmtree", "shutil.move", "shutil.copyfile",
    "shutil.copytree",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


WAITED = 30.0
"""Seconds that a reader may take on a busy machine; `HANG` limits its own work."""


class Watch:
    """Notes everything other than reading that happens inside `over`. Made once in a process.

    Args:
        allowed: audit events of `RUNS` that the reader is meant to cause.
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._allowed = allowed
        self._folder: str | None = None
        self._noted: list[str] = []
        self.seconds, self.bytes = 0.0, 0
        # for as long as the process lives
        self._printed = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, folder: Path) -> Iterator[list[str]]:
        """Watch a block that may write below a folder; the list holds every fault at the block's end."""
        self._noted = []
        sys.modules.pop(BAIT, None)
        memory = PeakMemory()
        with self._print_aside():
            began, worked = time.perf_counter(), time.process_time()
            self._folder = os.path.realpath(folder)
            try:
                yield self._noted
            finally:
                self._folder = None
                self.seconds = time.process_time() - worked
                passed = time.perf_counter() - began
        if BAIT in sys.modules:
            self._noted.append(f"import of {BAIT}")
        self.bytes = memory.peak(torch.device("cpu")) or 0
        if self.seconds > HANG or passed > WAITED:
            self._noted.append(f"took {self.seconds:.1f} s of work, {passed:.1f} s in all")
        if self.bytes > MOST_BYTES:
            self._noted.append(f"took {self.bytes >> 20} MB")

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._folder is None:
            return
        if event == "open":
            path, mode, flags = args
            if isinstance(path, str | bytes) and (flags & WRITING or set(mode or "") & set("wax+")):
                self._check(event, path)
        elif event in CHANGES:
            for path in args[:2]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._check(event, path)
        elif event in RUNS and event not in self._allowed:
            self._noted.append(f"{event} {args!r}"[:300])

    def _check(self, event: str, path: Any) -> None:
        assert self._folder is not None
        where = os.path.realpath(os.path.dirname(os.fsdecode(path)) or ".") + os.sep
        inside = where.startswith((self._folder + os.sep, "/proc/self/"))
        if not inside and os.fsdecode(path) != os.devnull:
            self._noted.append(f"{event} of {path!r}"[:300])

    @contextmanager
    def _print_aside(self) -> Iterator[None]:
        """Capture all output, also of libraries outside Python: it must show no secret and no traceback."""
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(1), os.dup(2)]
        self._printed.seek(0)
        self._printed.truncate()
        for to in (1, 2):
            os.dup2(self._printed.fileno(), to)
        try:
            with redirect_stdout(self._printed), redirect_stderr(self._printed):
                yield
        finally:
            self._printed.flush()
            for to, fd in zip((1, 2), kept, strict=True):
                os.dup2(fd, to)
                os.close(fd)
        self._printed.seek(0)
        told = self._printed.read(1 << 20)
        if SECRET in told or "Traceback" in told:
            self._noted.append(f"printed {told[-300:]!r}")
