"""Real processes: an export is killed while it replaces an earlier one; two exports run at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jepa_lm.artifact.loaded_model import load_model
from jepa_lm.artifact.publishing import belongs
from tests.conftest import REPO

pytestmark = pytest.mark.slow
RECORDS = ("export.json", "submission.json", "model_card.md", "run_config.json")


@pytest.fixture
def over(exported, trained, tmp_path):
    """over(overrides...) starts an export over an earlier one."""
    folder = tmp_path / "export"
    shutil.copytree(exported.folder, folder)

    def start(*overrides: str) -> subprocess.Popen:
        words = [f"ckpt_path={trained.folder}", f"hydra.run.dir={folder}", *overrides]
        return subprocess.Popen(
            [
                sys.executable,
                REPO / "export.py",
                "quantization=int4",
                "export.codecs=[zlib]",
                *words,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        )

    start.folder = folder
    return start


def test_a_kill_during_an_export_costs_nothing_and_leaves_nothing(over, exported):
    """Killed while the fresh process reads the file; the next export cleans up, in an ASCII locale too."""
    before = {name: (over.folder / name).read_bytes() for name in (*RECORDS, exported.file.name)}
    with over() as process:
        while not list(over.folder.glob(".*.tmp/artifact.*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        with over() as second:
            assert second.wait() == 2
            told = second.stderr.read().splitlines()
        process.send_signal(signal.SIGKILL)
    assert told == [
        f"error: hydra.run.dir={over.folder}: another process is writing there; wait until it has "
        "finished, or name another folder"
    ]
    assert {name: (over.folder / name).read_bytes() for name in before} == before
    assert len(list(over.folder.glob(".*.tmp"))) == 2
    with over("export.code=minified", "export.protocols=[]") as process:
        assert process.wait() == 0, process.stderr.read()
    assert not list(over.folder.glob(".*.tmp"))
    (file,) = over.folder.glob("artifact.*")
    assert file.name == "artifact.zlib"
    assert belongs(file)
    assert load_model(None, str(over.folder)).source == file
    source = (over.folder / "code" / "jepa_lm" / "utils" / "files.py").read_bytes()
    compile(source, "files.py", "exec")
