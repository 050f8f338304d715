"""Settings of the process; a user's own settings win."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jepa_lm.utils import process

FAULTS = """
import resource, sys
from jepa_lm.utils import process
if sys.argv[1] == "tuned":
    process.tune()
import torch
torch.set_num_threads(1)
def step():
    for _ in range(4):
        torch.ones(16_000_000).mul(2)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_large_tensors_reuse_memory():
    """64 MB each: without tuning each is mapped anew, which costs a page fault every 4 KiB."""
    faults = {
        name: int(subprocess.check_output([sys.executable, "-c", FAULTS, name], text=True))
        for name in ("plain", "tuned")
    }
    assert faults["tuned"] < 0.5 * faults["plain"]


def test_a_users_environment_wins(monkeypatch):
    called = []
    monkeypatch.setattr(process, "_keep_freed_memory", lambda: called.append(1))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    process.tune()
    assert called == []
    assert process.os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    process.tune()
    assert called == [1]
