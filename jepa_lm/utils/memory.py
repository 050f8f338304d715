"""Peak memory of a run: on the GPU, or of this process on a CPU (Linux)."""

from __future__ import annotations

import contextlib
import gc
import re
from pathlib import Path

import torch

from jepa_lm.utils.process import libc

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to `CLEAR`, it resets the peak to the current size (proc(5))."""


class PeakMemory:
    """Peak memory since this object was created, so that jobs of a sweep in one process are kept apart."""

    def __init__(self) -> None:
        if torch.cuda.is_initialized():  # by an earlier job; otherwise there is nothing to reset
            torch.cuda.reset_peak_memory_stats()
        gc.collect()
        self._start: int | None = None
        trim = libc("malloc_trim")
        if trim is not None:
            trim(0)  # return memory that earlier jobs freed
        with contextlib.suppress(OSError):
            CLEAR.write_text(RESET_PEAK, encoding="utf-8")
            self._start = _resident("VmRSS")

    def peak(self, device: torch.device) -> int | None:
        """Return peak bytes on a GPU; on a CPU, peak bytes above this process's start (None: not Linux)."""
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
