"""The published presets on one GPU out of eight, traced without one (benchmarks/trace), against the table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks.trace.guard import missing
from benchmarks.trace.main import PRESETS, ROWS, SHORT, differences, figures_of
from jepa_lm.training.estimate import table
from tests.conftest import REPO

REASON = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
MOST_GB = {"pr1243_jepardy": 60.0}
MOST_GB_ELSEWHERE = 70.0
FEW = ("pr1196_llm_jepa", "model.backbone.layers=2")
"""A preset for planted faults: which layer has the fault does not matter."""
PLANTED = """
from benchmarks.trace import guard, __main__ as program
guard.load()
import torch
from jepa_lm.training.module import LanguageModelTask
whole = LanguageModelTask._losses
def faulty(self, batch, step_context):
    {before}
    loss, ce, components = whole(self, batch, step_context)
    {after}
    return loss, ce, components
LanguageModelTask._losses = faulty
program.main("eager", *{arguments})
"""
Traces = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def traces() -> Iterator[Traces]:
    """traces(kind, row, *overrides) returns figures; all that the tests ask for are started at once."""
    started: dict[tuple[str, ...], Future[dict[str, Any]]] = {}
    with ThreadPoolExecutor(2) as pool:

        def start(kind: str, row: str, *more: str) -> Future[dict[str, Any]]:
            key = (kind, *ROWS[row], *more)
            if key not in started:
                started[key] = pool.submit(figures_of, *key)
            return started[key]

        start("inductor", SHORT)
        start("inductor", SHORT, "model.residual=float32")
        for preset in PRESETS:
            start("eager", preset)
        yield lambda *asked: start(*asked).result()


@pytest.mark.parametrize("preset", PRESETS)
def test_an_eager_step_stays_on_the_device_and_within_its_memory(traces, preset):
    found = traces("eager", preset)  # raises if tensors of two devices meet
    assert found["reads"] == []
    assert differences("eager", table()[preset], found) == []
    assert found["peak_gb"] < MOST_GB.get(preset, MOST_GB_ELSEWHERE)
    assert 0 < found["measured_gb"] < found["peak_gb"]


def test_the_compiler_writes_the_kernels_of_the_table(traces):
    assert differences("inductor", table()[SHORT], traces("inductor", SHORT)) == []


def test_a_float32_stream_is_found_by_its_traffic(traces):
    found = traces("inductor", SHORT, "model.residual=float32")
    assert any("traffic_gb" in text for text in differences("inductor", table()[SHORT], found))


def _planted(*, before: str = "pass", after: str = "pass") -> subprocess.CompletedProcess[str]:
    script = PLANTED.format(before=before, after=after, arguments=FEW)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=REPO
    )


def test_a_host_read_in_the_loss_is_found():
    done = _planted(after="loss.item()")
    assert done.returncode == 0, done.stderr
    assert '"reads": ["training/module.py' in done.stdout


def test_a_tensor_left_on_the_host_is_found():
    places = "torch.zeros(batch['inputs'].shape[1], dtype=torch.int64)"
    done = _planted(before=f"batch = dict(batch, inputs=batch['inputs'] + {places})")
    assert done.returncode == 1
    assert "cuda:0 and cpu" in done.stderr
