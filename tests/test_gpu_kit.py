"""The kit for a GPU (docs/gpu.md): how it runs its steps, and a rehearsal of all of them on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import benchmarks.gpu
from benchmarks.gpu import kit
from benchmarks.gpu.profile import Kernel, Profile, account, busy_us, kind_of
from benchmarks.gpu.results import Results, number, parsed, table
from benchmarks.gpu.steps import Step
from tests.processes import start

FAKE = """
import json, pathlib, subprocess, sys, time
name, folder = sys.argv[-1], pathlib.Path(sys.argv[1])
def claim(which, value=1.0, ok=True, target=2.0):
    line = dict(name=which, value=value, unit="ms", target=target, ok=ok, details={})
    print(json.dumps(line), flush=True)
with (folder / "ran").open("a") as file:
    file.write(name + " ")
if name == "good":
    print("not a claim")
    claim("good/a")
elif name == "bad":
    claim("bad/a", ok=False)
elif name == "crash":
    claim("crash/a", value=float((folder / "ran").read_text().count("crash")))
    if not (folder / "mended").exists():
        sys.exit("out of luck")
elif name == "hang":
    claim("hang/a")
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    child = subprocess.Popen([sys.executable, "-c", deaf])
    (folder / "child").write_text(str(child.pid))
    time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def handlers():
    """The kit is a program: it sets a handler for SIGTERM, which later tests must not inherit."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def go(tmp_path, capsys):
    """go("a", "b", budget=...) runs fake steps and returns the exit code and the table."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def make(*names: str, budget: float = 60.0, seconds: float = 30.0) -> tuple[int, str]:
        steps = {name: Step(lambda scale: iter(()), seconds, least=0.5) for name in names}
        results = Results(tmp_path / "out.jsonl")
        assert kit.run(results, steps, [sys.executable, str(script), str(tmp_path)], budget)
        code = kit.conclude(results, list(names))
        return code, capsys.readouterr().err

    return make


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


def names_in(folder: Path) -> list[str]:
    return [line["name"] for line in Results(folder / "out.jsonl").claims]


def test_met_claims_are_0_and_a_second_call_repeats_nothing(go, tmp_path):
    assert go("good")[0] == 0
    code, printed = go("good")
    assert code == 0
    assert ran(tmp_path) == ["good"]
    assert names_in(tmp_path) == ["good/a"]
    assert "ok    good/a  1.0 ms  target 2.0" in printed


def test_figures_of_several_commits_are_told(go, monkeypatch):
    """A second call continues a file, perhaps with other code."""
    monkeypatch.setattr(kit, "git_state", lambda: {"commit": "a" * 40, "dirty": False})
    assert "several commits" not in go("good")[1]
    monkeypatch.setattr(kit, "git_state", lambda: {"commit": "b" * 40, "dirty": True})
    _, printed = go("good", "bad")
    assert "the figures are of several commits: aaaaaaa, bbbbbbb+changes" in printed


def test_a_failed_claim_is_1(go):
    code, printed = go("good", "bad")
    assert code == 1
    assert "FAIL  bad/a" in printed


def test_a_crash_keeps_its_claims_and_is_run_again(go, tmp_path):
    code, printed = go("crash", "good")
    assert code == 1
    assert "out of luck" in printed
    assert ran(tmp_path) == ["crash", "good"]
    assert names_in(tmp_path) == ["crash/a", "good/a"]
    (tmp_path / "mended").touch()
    code, printed = go("crash", "good")
    assert code == 0
    assert "out of luck" not in printed
    assert ran(tmp_path) == ["crash", "good", "crash"]
    found = [line["value"] for line in Results(tmp_path / "out.jsonl").claims]
    assert sorted(found) == [1.0, 2.0], "a repeated claim must replace the earlier one"


def test_a_step_that_takes_too_long_is_killed_with_its_children(go, tmp_path):
    code, printed = go("hang", "good", seconds=3.0)
    assert code == 1
    assert "cut off after 3 s" in printed
    assert names_in(tmp_path) == ["hang/a", "good/a"]
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Return whether a process runs: one that nobody waits for stays as a zombie."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_budget_counts_the_running_step_and_what_is_missing_is_1(go, tmp_path):
    code, printed = go("hang", "good", budget=2.0)
    assert code == 1
    assert "cut off after 2 s" in printed
    assert "good: not begun" in printed
    assert "continues with hang, good" in printed
    assert ran(tmp_path) == ["hang"]


def test_a_torn_line_is_skipped_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"finished": "good", "seconds": 1.0}\n{"name": "hang/a", "val')
    results = Results(path)
    assert results.has("good")
    assert not results.claims
    results.add({"finished": "other", "seconds": 1.0})
    again = Results(path)
    assert again.has("good")
    assert again.has("other")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_exit_code_is_2(tmp_path, capsys):
    assert kit.main(["--out", str(tmp_path / "out.jsonl"), "--only", "hardware"]) == kit.NO_CUDA
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_unknown_step_is_named(capsys):
    with pytest.raises(SystemExit):
        kit.main(["--only", "pr1243,pr1244"])
    assert "no step pr1244" in capsys.readouterr().err


def test_every_module_imports_without_a_gpu():
    for module in pkgutil.iter_modules(benchmarks.gpu.__path__):
        importlib.import_module(f"benchmarks.gpu.{module.name}")


def test_the_most_valuable_steps_come_first_and_variants_only_when_asked():
    usual = [name for name, step in kit.STEPS.items() if step.usual]
    assert usual[:5] == ["hardware", "pr1243", "pr903_bpe", "pr832", "parity"]
    assert not any(name.endswith(("eager", "mamba_ssm")) for name in usual)
    assert all(step.least < kit.BUDGET for step in kit.STEPS.values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "gemm"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "gemm"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("triton_red_fused__fused_rms_norm_mul_3", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, FillFunctor>", "elementwise"),
        ("void at::native::multi_tensor_apply_kernel<TensorListMetadata>", "foreach"),
        ("_chunk_scan_fwd_kernel", "scan"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("ncclDevKernel_AllGather_RING_LL", "nccl"),
        ("something_else", "other"),
    ],
)
def test_kernels_are_sorted_by_their_names(name, kind):
    assert kind_of(name) == kind


def test_a_profile_counts_overlapping_kernels_once():
    kernels = [
        Kernel("gemm_a", 0, 1000),
        Kernel("triton_b", 500, 2000),
        Kernel("gemm_a", 3000, 4000),
    ]
    assert busy_us(kernels) == 3000
    found = account(kernels, steps=2, step_ms=2.0)
    assert found["busy_ms"] == 1.5
    assert found["idle_ms"] == 0.5
    assert found["ms"]["gemm"] == 1.0
    assert found["ms"]["elementwise"] == 0.75
    assert next(iter(found["longest_ms"])) == "gemm_a"


def test_figures_are_printed_with_sensible_digits(tmp_path):
    results = Results(tmp_path / "out.jsonl")
    for name, value, unit in (
        ("a", 84.6123, "ms"),
        ("b", 0.000123456, "relative"),
        ("c", 0, "waits"),
    ):
        results.add(dict(name=name, value=value, unit=unit, target=None, ok=True, step="x"))
    assert table(results).splitlines() == [
        "      a  84.6 ms",
        "      b  0.0001235 relative",
        "      c  0 waits",
    ]
    assert number({"value": float("nan"), "unit": "ms"}) == "nan"


def test_many_met_claims_share_a_row_and_failed_ones_do_not(tmp_path):
    results = Results(tmp_path / "out.jsonl")
    for i in range(20):
        claim = dict(name=f"parity/{i}", value=i / 10, unit="off", target=1.8, ok=i < 19, step="x")
        results.add(claim)
    assert table(results).splitlines() == [
        "ok    parity     19 claims met  the closest at 100%",
        "FAIL  parity/19  1.9 off        target 1.8",
    ]


def test_a_profiler_that_fails_does_not_fail_the_run(monkeypatch):
    def broken(*args, **settings):
        raise RuntimeError("CUPTI is busy")

    monkeypatch.setattr("benchmarks.gpu.profile.profile", broken)
    watched = Profile(first=1, count=1)
    watched.on_train_batch_start(SimpleNamespace(global_step=0))
    watched.on_train_batch_end(SimpleNamespace(global_step=1))
    assert watched.refused == "RuntimeError: CUPTI is busy"


def run_forked(command, *, seconds, log, take):
    """Do as `run_process`, which has own tests, without a new Python; a step over its time is an error."""
    assert command[:3] == [sys.executable, "-m", "benchmarks"]
    process = start("benchmarks", *command[3:])
    try:
        out, err = process.communicate(seconds)
    finally:
        process.kill()
    for text in out.splitlines():
        if (line := parsed(text)) is not None:
            take(line)
    return process.returncode, "" if process.returncode == 0 else err[-3000:]


@pytest.mark.slow
def test_the_kit_on_the_cpu(tmp_path, monkeypatch, capsys):
    """All of its steps but the presets that differ from others by their config alone."""
    steps = ["hardware", "pr832", "parity", "programs", "ranks", "parity_compiled"]
    out = tmp_path / "gpu.jsonl"
    monkeypatch.setattr(kit, "run_process", run_forked)
    chosen = ("--rehearse", "--budget", "1500", "--only", ",".join(steps))
    assert kit.main([*chosen, "--out", str(out)]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["finished"] for line in lines if "finished" in line] == steps
    names = {line["name"] for line in lines if "name" in line}
    for preset in ("pr1243_jepardy", "pr903_lewm_bpe", "pr832_byte_chunk", "pr1581_span_vicreg"):
        assert {f"parity/loss/{preset}/float32", f"parity/loss/{preset}/bfloat16"} <= names
    assert {"resume/weights", "export/same_score", "ranks/gloo_2/update", "ranks/ddp_1"} <= names
    assert {f"pr832_byte_chunk/{claim}" for claim in ("step", "profile", "breaks")} <= names
    assert "evaluation/stream/pr903_lewm_bpe" in names
