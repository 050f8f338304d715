"""The published presets on one GPU out of eight, traced without one (benchmarks/trace), against the table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from benchmarks.trace.guard import missing
from benchmarks.trace.main import PRESETS, ROWS, SHORT, differences
from jepa_lm.training.estimate import table
from tests.conftest import REPO
from tests.trace_worker import BUGS, Asked

REASON = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
MOST_GB = {"pr1243_jepardy": 60.0}
MOST_GB_ELSEWHERE = 70.0
WIDE = "model.residual=float32"
FEW = ["pr1196_llm_jepa", "model.backbone.layers=2", "quantization.training.start=0.5"]
"""A preset for planted bugs: which layer has the bug does not matter. It trains on quantized weights, too."""
TRACED: dict[str, dict[str, Asked]] = {
    "inductor": {SHORT: (None, [*ROWS[SHORT]]), WIDE: (None, [*ROWS[SHORT], WIDE])},
    "eager": {preset: (None, [*ROWS[preset]]) for preset in PRESETS} | {b: (b, FEW) for b in BUGS},
}
"""What is traced, by kind and name."""
Traces = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def traces() -> Iterator[Traces]:
    """traces(kind, name) returns figures, or the `error` that stopped the trace; a process for each kind."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.trace_worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = {
        kind: subprocess.Popen([*command, kind], cwd=REPO, encoding="utf-8", **pipes)
        for kind in TRACED
    }
    for kind, worker in workers.items():
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(list(TRACED[kind].values())))
        worker.stdin.close()

    @cache
    def found(kind: str) -> dict[str, dict[str, Any]]:
        stdout = workers[kind].stdout
        assert stdout is not None
        return dict(zip(TRACED[kind], map(json.loads, stdout), strict=True))

    yield lambda kind, name: found(kind)[name]
    for worker in workers.values():
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("preset", PRESETS)
def test_an_eager_step_stays_on_the_device_and_within_its_memory(traces, preset):
    found = traces("eager", preset)
    assert "error" not in found, found["error"]  # such as tensors of two devices that meet
    assert found["reads"] == []
    assert differences("eager", table()[preset], found) == []
    assert found["peak_gb"] < MOST_GB.get(preset, MOST_GB_ELSEWHERE)
    assert 0 < found["measured_gb"] < found["peak_gb"]


def test_the_compiler_writes_the_kernels_of_the_table(traces):
    assert differences("inductor", table()[SHORT], traces("inductor", SHORT)) == []


def test_a_float32_stream_is_found_by_its_traffic(traces):
    found = traces("inductor", WIDE)
    assert any("traffic_gb" in text for text in differences("inductor", table()[SHORT], found))


def test_a_host_read_in_the_loss_is_found(traces):
    reads = traces("eager", "reads_on_the_host")["reads"]
    assert reads
    assert all(read.startswith("training/module.py") for read in reads)


def test_a_host_read_of_quantized_weights_is_found(traces):
    reads = traces("eager", "reads_when_quantized")["reads"]
    assert len(reads) == 1  # one step of three has quantized weights


def test_a_tensor_left_on_the_host_is_found(traces):
    assert "cuda:0 and cpu" in traces("eager", "leaves_a_tensor_on_the_host")["error"]
