"""Every hostile form on every route, and in whole processes: nothing that a file names is run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.artifact.hostile import ROUTES, SECRET, artifact_with, checkpoint_with, clear, forms
from tests.conftest import REPO

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("route", ROUTES)
def test_every_form_is_refused_on_every_route(go, canary, route):
    for name, value in forms(canary).items():
        if name == "a long number" and "artifact" in route:
            continue  # JSON holds none
        assert clear(go(route, ("model", "bigram"), value), canary), (route, name)


def test_whole_processes_run_nothing_and_tell_no_secret(exported, trained, canary, tmp_path):
    call = forms(canary)["a reference that calls"]
    artifact = artifact_with(exported.file, tmp_path, ("data", "corpus"), call)
    tuples = forms(canary)["one in a tuple"]
    checkpoint = checkpoint_with(trained.checkpoint, tmp_path, ("model", "bigram"), tuples)
    commands = (
        ("-m", "jepa_lm.artifact", str(artifact)),
        ("eval.py", f"artifact_path={artifact}", f"hydra.run.dir={tmp_path}/e"),
        ("export.py", f"ckpt_path={checkpoint}", f"hydra.run.dir={tmp_path}/x"),
    )
    started = [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "SECRET": SECRET, "PYTHONPATH": str(REPO)},
        )
        for words in commands
    ]
    for process in started:
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 2, told
        assert clear(told.splitlines()[-1], canary)
        assert "Traceback" not in told
