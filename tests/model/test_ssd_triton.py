"""The Triton kernels of the SSD scan: their results in the interpreter, and their compilation for GPUs.

Each kind of check has a process of its own, because Triton decides at import whether to interpret.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.model.kernels import has_triton
from jepa_lm.model.ssd import ssd_sequential
from jepa_lm.model.ssd_launch import LAUNCHES
from jepa_lm.model.ssd_triton import triton_ssd
from tests.conftest import REPO, needs

needs_triton = needs(importlib.util.find_spec("triton"), "the package triton")
QUICK = ("ragged", "two groups", "heads of a group in one program", "fault in a decay")
THOROUGH = (
    "shorter than a chunk",
    "one position",
    "whole chunks",
    "tiles of a chunk",
    "smaller tiles inside",
    "heads shared unevenly",
    "views of one tensor",
    "wide",
    "blocks of a state",
    "only outputs are used",
    "only the final state is used",
    "a gradient without strides",
    "float16",
    "bfloat16",
    "tiles of the published model",
    "fault in a state",
    "fault in a step's gradient",
)
LIMITS = {"float16": 3e-3, "bfloat16": 3e-2, "tiles of the published model": 3e-2}
"""Largest error relative to the largest value, where it is not that of float32."""
LIMIT, LIMIT_OF_A = 1e-5, 1e-4
"""The gradient of a sums terms of both signs over all positions."""


def output_of(*command: str, cache: Any = None) -> Any:
    """Run a module of the tests and return the JSON that it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quick():
    return output_of("tests.model.ssd_interpreted", *QUICK)


@pytest.fixture(scope="module")
def thorough():
    return output_of("tests.model.ssd_interpreted", *THOROUGH)


def excesses(name: str, errors: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the errors above their limit."""
    return {
        f"{key} ({reference})": error
        for reference, found in errors.items()
        for key, error in found.items()
        if not error <= LIMITS.get(name, LIMIT_OF_A if key == "a" else LIMIT)
    }


def judge(name: str, errors: dict[str, dict[str, float]]) -> None:
    found = excesses(name, errors)
    assert bool(found) == name.startswith("fault"), found


@needs_triton
@pytest.mark.parametrize("name", QUICK)
def test_kernels_equal_the_recurrence(quick, name):
    judge(name, quick[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", THOROUGH)
def test_kernels_equal_the_recurrence_in_rarer_cases(thorough, name):
    judge(name, thorough[name])


@needs_triton
@pytest.mark.slow
def test_every_case_is_listed():
    cases = output_of("tests.model.ssd_interpreted", "names")
    assert set(cases["names"]) == {*QUICK, *THOROUGH}


@needs_triton
@pytest.mark.slow
def test_the_operator_passes_the_checks_of_pytorch():
    found = output_of("tests.model.ssd_interpreted", "opcheck")["opcheck"]
    assert found
    assert set(found.values()) == {"SUCCESS"}, found


@needs_triton
@pytest.mark.slow
def test_a_compiled_step_has_one_graph_and_the_same_gradients():
    found = output_of("tests.model.ssd_interpreted", "compile")["compile"]
    assert found
    assert all(found.values()), found


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_without_spills(arch, tmp_path):
    """At the sizes of #903 in bfloat16."""
    found = output_of("tests.model.ssd_ahead", str(arch), cache=tmp_path)
    assert {entry["kernel"] for entry in found} == set(LAUNCHES)
    for entry in found:
        assert entry["spilled"] == 0, entry
        assert entry["registers"] <= entry["limit"], entry


@pytest.mark.skipif(not has_triton(), reason="needs a CUDA device and triton")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("T", [77, 1024])
def test_kernels_equal_the_recurrence_on_a_gpu(dtype, limit, T):
    torch.manual_seed(0)
    B, H, P, G, N = 2, 4, 64, 2, 64
    draws = [torch.randn(B, T, *shape) for shape in ((H, P), (G, N), (G, N))]
    x, b, c = (v.to("cuda", dtype).double() for v in draws)
    dt = F.softplus(torch.randn(B, T, H, device="cuda") - 3)
    a = -1 - 15 * torch.rand(H, device="cuda")
    state = torch.randn(B, H, P, N, device="cuda")
    exact = [v.double().requires_grad_() for v in (x, dt, a, b, c, state)]
    narrow = [
        v.detach().to(dtype if i in (0, 3, 4) else torch.float32).requires_grad_()
        for i, v in enumerate(exact)
    ]
    results = []
    for scan, leaves in ((ssd_sequential, exact), (triton_ssd, narrow)):
        y, last = scan(*leaves)
        loss = (y * torch.linspace(-1, 1, T, device="cuda").to(y.dtype)[:, None, None]).sum()
        results.append([y, last, *torch.autograd.grad(loss + last.square().sum(), leaves)])
    for right, got in zip(*results, strict=True):
        assert (got.double() - right).norm() <= limit * right.norm()


@pytest.mark.skipif(not has_triton(), reason="needs a CUDA device and triton")
def test_results_on_a_gpu_are_the_same_each_time():
    torch.manual_seed(0)
    x, b, c = (torch.randn(2, 300, n, 64, device="cuda", dtype=torch.bfloat16) for n in (4, 1, 1))
    dt, a = torch.rand(2, 300, 4, device="cuda"), -torch.rand(4, device="cuda")
    leaves = [v.requires_grad_() for v in (x, dt, a, b, c)]
    first, second = (torch.autograd.grad(triton_ssd(*leaves)[0].sum(), leaves) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
