"""How much memory a run takes at its peak: of the GPU, or of this process on a CPU (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written there, it makes the present size the peak (proc(5))."""


class PeakMemory:
    """Counts from its making on, so that the jobs of a sweep in one process are told apart."""

    def __init__(self) -> None:
        if torch.cuda.is_initialized():  # by an earlier job; else there is nothing to reset
            torch.cuda.reset_peak_memory_stats()
        gc.collect()
        self._start: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what earlier jobs have freed is not this one's
            CLEAR.write_text(RESET_PEAK, encoding="utf-8")
            self._start = _resident("VmRSS")

    def peak(self, device: torch.device) -> int | None:
        """Bytes on a GPU; for a CPU, of this process on top of its size at the start (None: not on Linux)."""
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        with contextlib.suppress(OSError):
            return None if self._start is None else max(_resident("VmHWM") - self._start, 0)
        return None


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS}: no {name}")
    return 1024 * int(found.group(1))
