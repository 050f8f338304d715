"""Process settings that make PyTorch faster on a CPU, and the start of further processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jepa_lm.utils.errors import RankError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Constants of glibc's malloc.h."""
NEVER = 2**31 - 1


def tune() -> None:
    """Tune threads and malloc before torch is imported; no result changes, and set variables win."""
    # Idle OpenMP threads sleep instead of spinning: next to one busy process, spinning made the
    # demo's steps on two cores 2 to 40 times slower (docs/log.md). Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let malloc reuse large blocks: a new mapping for each tensor costs a page fault every 4 KiB.

    With a vocabulary of 8192 these page faults took half of a run's time (docs/log.md).
    """
    mallopt = libc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)


def libc(function: str) -> Callable[..., int] | None:
    """Return a function of glibc; None where there is another C library, or none to ask."""
    try:
        import ctypes  # some builds of Python have none

        return getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, ImportError, TypeError):  # macOS and musl; Windows
        return None


PARENT = "JEPA_LM_RANK_ZERO"
"""Environment variable with the process id of rank 0, set in the ranks that it started."""


def stop_with_parent() -> None:
    """Make this rank exit once rank 0, which started it, is gone for any reason."""
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        print("error: rank 0 is gone, so this rank stopped", file=sys.stderr, flush=True)
        os._exit(RankError.exit_code)

    threading.Thread(target=watch, daemon=True).start()


def fresh_python(
    *arguments: str,
    path: Path | None = None,
    variables: Mapping[str, str] | None = None,
    **settings: Any,
) -> subprocess.Popen:
    """Start a new Python process that finds the same modules as this one, from any folder.

    It finds this package and the user's own modules, but nothing that happens to be in the current folder.

    Args:
        path: folder that holds the package, if not this one. variables: added to the environment.
        settings: passed to `subprocess.Popen`.
    """
    paths = [os.path.abspath(folder) for folder in sys.path]
    # Where the package is installed, the folder is on the path already, behind the standard library's.
    package = str(path or Path(__file__).resolve().parent.parent.parent)
    if path or package not in paths:
        paths.insert(0, package)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(variables or {})}
    return subprocess.Popen([sys.executable, "-P", *arguments], env=environment, **settings)
