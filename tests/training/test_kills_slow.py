"""Six of the sixty kills of `make kills`: nothing is lost, everything is bit-identical."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPO

pytestmark = pytest.mark.slow


def test_a_run_killed_six_times_is_the_run_that_was_not(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "EMA, vicreg, the best ships"],
        cwd=REPO,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kills, 0 of the works ended otherwise" in done.stdout
    for moment in ("start", "step", "half", "validation", "kept", "rows"):
        assert f"{moment} 1" in done.stdout
