"""Six of the sixty kills of `make kills`: nothing is lost, everything is bit-identical."""

from __future__ import annotations

import pytest

from tests.processes import run

pytestmark = pytest.mark.slow


def test_a_run_killed_six_times_is_the_run_that_was_not(tmp_path):
    printed = run("tests.kills", "EMA, vicreg, the best ships", TMPDIR=str(tmp_path))
    assert "6 kills, 0 of the works ended otherwise" in printed
    for moment in ("start", "step", "half", "validation", "kept", "rows"):
        assert f"{moment} 1" in printed
