"""One job for each GPU: workers of a sweep on one machine take GPUs that no other worker holds.

`hydra/launcher=gpus` runs as many workers as there are GPUs. A worker claims one with a file lock, which
ends with its process, however that goes, and keeps it for all the jobs that it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from jepa_lm.utils.errors import UserError

LAUNCHER = "gpus"
"""Option of the group hydra/launcher."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: IO[bytes] | None = None
"""The lock of this process."""


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA names them."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def count() -> int:
    """How many there are; 1 where there is none, so that a sweep still has a worker."""
    return max(len(visible()), 1)


def claim(folder: Path) -> None:
    """Let this process see one GPU that no other worker of the sweep holds.

    To be called before CUDA is started.

    Args:
        folder: of the sweep, where the locks lie.

    Raises:
        UserError: there is none, or all are taken.
    """
    import fcntl  # there is none on Windows, where the rest of the program runs

    global _held
    if _held is not None:
        return
    names = visible()
    for name in names:
        lock = open(folder / f".gpu-{name.replace('/', '_')}.lock", "wb")  # noqa: SIM115 (kept open)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _held = lock
        os.environ[VISIBLE] = name
        return
    raise UserError(
        f"hydra/launcher=gpus: none of the {len(names)} GPUs here is free ({VISIBLE}="
        f"{os.environ.get(VISIBLE, 'not set')}); lower hydra.launcher.n_jobs"
    )
