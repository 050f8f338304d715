"""Compiles and loads the pretended device's part in C++, before PyTorch is imported: it looks only once.

The guard is compiled once for each version of PyTorch. This module imports no PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jepa_lm.utils.errors import UserError

SOURCE = Path(__file__).with_name("guard.cpp")


def missing() -> str | None:
    """Return why nothing can be traced here, or None."""
    if _torch()["version"]["cuda"] is not None:
        return "this PyTorch has CUDA, whose device cannot be replaced; a build for CPUs can trace"
    if shutil.which("g++") is None:
        return "g++ is missing, which compiles the pretended device"
    if importlib.util.find_spec("triton") is None:
        return (
            "triton is missing, in which the compiler writes kernels: pip install 'jepa_lm[triton]'"
        )
    return None


@functools.cache
def load() -> None:
    """Load the guard into this process, once.

    Raises:
        UserError: nothing can be traced here.
    """
    reason = missing()
    if reason is not None:
        raise UserError(f"trace: {reason}")
    assert "torch" not in sys.modules, "PyTorch has decided already that there is no device"
    ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL)


def build() -> Path:
    """Return the compiled guard; compile it first if the cache lacks it."""
    torch, source = _torch(), SOURCE.read_bytes()
    key = hashlib.sha256(source + torch["version"]["__version__"].encode()).hexdigest()[:16]
    folder = Path(os.environ.get("JEPA_LM_CACHE", "~/.cache/jepa_lm")).expanduser() / "trace"
    path = folder / f"guard-{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    lib, include = torch["folder"] / "lib", torch["folder"] / "include"
    with tempfile.TemporaryDirectory(dir=folder) as made:  # renamed when whole: others may look
        command = ["g++", "-w", "-O1", "-shared", "-fPIC", "-std=c++20", str(SOURCE)]
        command += [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
        command += [f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
        done = subprocess.run(
            [*command, "-o", f"{made}/guard.so"], capture_output=True, encoding="utf-8"
        )
        if done.returncode:
            raise UserError(f"trace: g++ cannot compile {SOURCE.name}: {done.stderr[-500:]}")
        os.replace(f"{made}/guard.so", path)
    return path


def _torch() -> dict[str, Any]:
    """Return the folder of the installed PyTorch and what its `version.py` says."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return {"folder": folder, "version": runpy.run_path(str(folder / "version.py"))}
