"""10,000 mutated artifacts: each is refused by one clear line or loads the very weights (trap 24)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO

pytestmark = pytest.mark.slow
MUTANTS, PROCESSES = 10_000, 2
HANG = 5.0
"""Seconds that no load may take. A bound, not a speed: the median is a thousandth of it."""


def test_ten_thousand_mutants_never_crash_hang_bloat_or_run_anything(exported):
    share = MUTANTS // PROCESSES
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.artifact.fuzz_worker",
                str(exported.file),
                str(i * share),
                str(share),
            ],
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    for worker in workers:
        printed, _ = worker.communicate(timeout=900)
        assert worker.returncode == 0
        found = json.loads(printed)
        assert found["wrong"] == []
        assert sum(found["ends"].values()) == share
        assert found["slowest"] < HANG
        assert found["peak_bytes"] < 1 << 30
        # Every kind of damage is met, and some changes (to what is only shown) are harmless.
        assert {name.split()[0] for name in found["ends"]} >= {
            "flipped",
            "bomb",
            "config",
            "tensor",
        }
        assert found["ends"]["config loaded"] > 0
