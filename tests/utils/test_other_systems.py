"""macOS and Windows, as far as Linux can play them: what those systems lack is taken away.

PyTorch and Lightning are imported before, because they would load what only those systems have.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPO, SMALL
from tests.runs import summary

AS_ELSEWHERE = """
import builtins, ctypes, io, os, signal, sys
import filelock, lightning.pytorch, torch
from lightning.pytorch.strategies.launchers import subprocess_script
system = sys.argv.pop(1)
assert "jepa_lm.utils.process" not in sys.modules

class NoLibrary:  # macOS has a C library, but none of glibc's functions
    def __init__(self, name, *further):
        if system == "win32":
            raise TypeError("LoadLibrary() argument 1 must be str, not None")

def no_proc(path, *further, **named):
    if str(path).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return open_any(path, *further, **named)

open_any, builtins.open, io.open = open, no_proc, no_proc
sys.platform, ctypes.CDLL = system, NoLibrary
gone = {os: ["sched_getaffinity", "sched_setaffinity"], signal: []}
missing = []
if system == "win32":
    gone[os] += ["fork", "getuid", "geteuid", "getpgid", "killpg", "setsid", "uname", "sysconf", "nice"]
    gone[signal] += ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "alarm", "pause"]
    missing += ["fcntl", "resource", "pwd", "grp", "termios"]
for module, names in gone.items():
    for name in names:
        delattr(module, name)
for name in missing:
    sys.modules[name] = None

from jepa_lm.cli import train
sys.exit(train())
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_run_starts_and_ends(system, tmp_path, small_text):
    words = (*SMALL, f"data.path={small_text}", "trainer.max_steps=2")
    done = subprocess.run(
        [sys.executable, "-c", AS_ELSEWHERE, system, *words, f"hydra.run.dir={tmp_path}"],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path)["steps"] == 2
    assert summary(tmp_path)["memory_bytes"] is None
