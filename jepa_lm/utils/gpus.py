"""One job per GPU: each worker of a sweep on one machine takes a GPU that no other worker holds.

`hydra/launcher=gpus` runs as many workers as there are GPUs. A worker claims a GPU with a file lock and keeps
it for all its jobs; the lock ends with the process, even if it is killed.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_lm.utils.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock

LAUNCHER = "gpus"
"""The option of the group hydra/launcher."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
WITHOUT_CUDA = re.compile(r"^cuda\b.*= *None *$", re.MULTILINE)
"""Line of PyTorch's version.py."""
_held: FileLock | None = None
"""The lock that this process holds."""
_asked = True
"""False inside `not_asked`."""


def visible() -> list[str]:
    """Return the CUDA names of the GPUs that this process may use."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def not_asked() -> Iterator[None]:
    """Let `accelerator` say `cpu` inside: a config is checked before PyTorch is imported to ask it."""
    global _asked
    _asked = False
    try:
        yield
    finally:
        _asked = True


def accelerator() -> str:
    """Return Lightning's name of where `trainer=auto` trains: `gpu` if PyTorch can use one, else `cpu`.

    Apple's GPUs are not chosen. A PyTorch that was built without CUDA is not imported to find this out.
    """
    if not _asked:
        return "cpu"
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    with suppress(OSError, AttributeError):
        if version is not None and WITHOUT_CUDA.search(version.read_text(encoding="utf-8")):
            return "cpu"
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def count() -> int:
    """Return the number of visible GPUs; 1 if there is none, so that a sweep still has a worker."""
    return max(len(visible()), 1)


def claim(folder: Path) -> None:
    """Restrict this process to one GPU that no other worker of the sweep holds.

    Call it before CUDA is initialized.

    Args:
        folder: the sweep's folder, which holds the locks.

    Raises:
        UserError: there is no GPU, or all are taken.
    """
    from filelock import FileLock, Timeout

    global _held
    if _held is not None:
        return
    names = visible()
    for name in names:
        lock = FileLock(folder / f".gpu-{name.replace('/', '_')}.lock", timeout=0)
        try:
            lock.acquire()
        except (Timeout, NotImplementedError, OSError):
            continue
        _held = lock
        os.environ[VISIBLE] = name
        return
    raise UserError(
        f"hydra/launcher=gpus: none of the {len(names)} GPUs is free ({VISIBLE}="
        f"{os.environ.get(VISIBLE, 'not set')}); lower hydra.launcher.n_jobs"
    )
