"""Workers of a sweep and the machine's GPUs: one each, free again when a worker is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jepa_lm.training.summary import _place
from jepa_lm.utils import gpus
from jepa_lm.utils.errors import UserError

WORKER = """
import sys
from pathlib import Path
from jepa_lm.utils import gpus
gpus.claim(Path(sys.argv[1]))
print(*gpus.visible(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(monkeypatch):
    """A machine with two GPUs, which the user's list calls 3 and 5."""
    monkeypatch.setenv(gpus.VISIBLE, "3, 5")
    monkeypatch.setattr(gpus, "_held", None)
    yield
    if gpus._held is not None:
        gpus._held.release()


def worker(folder):
    command = [sys.executable, "-c", WORKER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_worker_holds_its_gpu_until_its_process_ends(machine, tmp_path):
    with worker(tmp_path) as one, worker(tmp_path) as other:
        assert {one.stdout.readline(), other.stdout.readline()} == {"3\n", "5\n"}
        with pytest.raises(UserError, match=r"none of the 2 GPUs is free .*n_jobs"):
            gpus.claim(tmp_path)
        one.kill()
        one.wait()
        gpus.claim(tmp_path)
        held = os.environ[gpus.VISIBLE]
        gpus.claim(tmp_path)  # the same worker's next job
        assert os.environ[gpus.VISIBLE] == held
        other.kill()


def test_a_sweep_has_a_worker_for_each_gpu_and_one_without_any(machine, monkeypatch):
    assert gpus.count() == 2
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus.count() == 1


@pytest.mark.parametrize(
    ("version", "available", "expected"),
    [
        ("cuda: Optional[str] = None\n", True, "cpu"),  # not even asked
        ("cuda: Optional[str] = '12.8'\n", True, "gpu"),
        ("cuda: Optional[str] = '12.8'\n", False, "cpu"),
        (None, True, "gpu"),
    ],
)
def test_auto_is_a_gpu_if_pytorch_can_use_one(tmp_path, monkeypatch, version, available, expected):
    if version is not None:
        (tmp_path / "version.py").write_text(f"debug = False\n{version}hip: Optional[str] = None\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    assert gpus.accelerator() == expected


def test_a_run_says_where_it_trains_and_what_stays_unused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "H100")
    for devices, told in (
        (1, "1 x H100; 7 more unused: trainer=ddp"),
        ("auto", "8 x H100"),
        ([0, 3], "2 x"),
        ("0,3", "2 x"),
        ("4", "4 x"),
    ):
        said = _place({"accelerator": "gpu", "devices": devices})
        assert said.startswith(f"on {told}")
        assert ("unused" in said) == (devices != "auto")
    assert _place({"accelerator": "cpu", "devices": 1}) == "on the CPU"
