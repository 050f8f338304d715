"""Whole commands in separate processes: kills, ranks, the three entry points in a row."""

from __future__ import annotations

import csv
import json
import shlex
import signal

import pytest

from jepa_lm.data.corpora import Austen
from jepa_lm.run import evaluate
from tests.conftest import FAST_MUON, SHALLOW, SMALL
from tests.processes import run, start, wait_until
from tests.runs import losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    """About 220 kB of real English, as overrides: enough to search a temperature on, and quick to score."""
    path = tmp_path_factory.mktemp("novel") / "emma.txt"
    blocks = Austen().blocks("train")
    path.write_text("".join(next(blocks).text for _ in range(20))[:220_000])
    return ("data/corpus=text", f"data.path={path}")


@pytest.mark.parametrize("data", ["austen", "bytes256", "byte260"])
def test_train_export_eval_in_a_row(tmp_path, novel, data):
    fresh = data == "austen"
    words = (f"data={data}", *(() if fresh else novel), f"hydra.run.dir={tmp_path}/run")
    run("train.py", "debug=tiny", FAST_MUON, *words, fresh=fresh)
    words = (f"ckpt_path={tmp_path}/run", f"hydra.run.dir={tmp_path}/export")
    run("export.py", *words, fresh=fresh)
    words = (f"artifact_path={tmp_path}/export", f"hydra.run.dir={tmp_path}/eval")
    printed = run("eval.py", *words, "eval.baselines=false", fresh=fresh)
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())["val"]
    scored = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert scored["bpb"] == pytest.approx(trained["bpb"], abs=0.02)
    assert scored["bytes"] == trained["bytes"]
    assert scored["audit"]["matches"]
    assert "bits per byte" in printed


@pytest.mark.parametrize("preset", ["pr903_lewm_bpe", "pr903_lewm_byte"])
def test_the_recurrent_presets_train_export_and_eval(compose, tmp_path, novel, preset):
    words = (f"experiment={preset}", "debug=tiny", *SHALLOW, FAST_MUON, *novel)
    printed = run("train.py", *words, f"hydra.run.dir={tmp_path}/run")
    assert "what the model writes" in printed
    run("export.py", f"ckpt_path={tmp_path}/run", f"hydra.run.dir={tmp_path}/export")
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    exported = json.loads((tmp_path / "export" / "export.json").read_text())
    assert trained["status"] == "finished"
    assert trained["jepa"]["collapse"] is None
    assert exported["temperature"]["tokens"] == 65_536
    quick = ("eval.baselines=false", "eval.audit=false", f"artifact_path={tmp_path}/export")
    for protocol in ("standard", "sliding", "stream"):
        stride = ("eval.stride=32",) if protocol == "sliding" else ()
        words = (*quick, *stride, f"eval={protocol}")
        evaluate(compose("eval", *words, run_dir=tmp_path / protocol))
        scored = json.loads((tmp_path / protocol / "eval.json").read_text())
        assert scored["tokens"] == trained["val"]["tokens"]
        assert scored["temperature"] == exported["temperature"]["temperature"]
        assert scored["bpb"] < trained["val"]["bpb"] + 0.02


def test_sigkill_then_resume_is_bit_identical(tmp_path, small_text):
    common = [
        *SMALL,
        f"data.path={small_text}",
        "trainer.max_steps=160",
        "trainer.log_every_n_steps=1",
        "checkpoint.every_n_steps=5",
    ]
    run("train.py", *common, f"hydra.run.dir={tmp_path}/whole")
    killed = start("train.py", *common, f"hydra.run.dir={tmp_path}/killed")
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    wait_until(checkpoint.is_file, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert checkpoint.is_file()
    assert not (tmp_path / "killed" / "summary.json").exists()
    resume = [f"ckpt_path={tmp_path}/killed", f"hydra.run.dir={tmp_path}/killed"]
    run("train.py", *common, *resume)
    whole, continued = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert len(continued) > 50
    assert all(whole[step] == loss for step, loss in continued.items())
    scores = [
        json.loads((tmp_path / name / "summary.json").read_text())["val"]["nll"]
        for name in ("whole", "killed")
    ]
    assert scores[0] == scores[1]


def test_ctrl_c_saves_and_resumes(tmp_path, small_text):
    common = [*SMALL, f"data.path={small_text}", "trainer.max_steps=100000", "compile=false"]
    process = start("train.py", *common, f"hydra.run.dir={tmp_path}/run")
    wait_until((tmp_path / "run" / "checkpoints" / "last.ckpt").is_file, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopping after this step" in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["val"]["bpb"] > 0
    steps = summary["steps"]
    _, script, *again = shlex.split(err.strip().rpartition("; to go on: ")[2])
    run(script, *(w for w in again if "max_steps" not in w), f"trainer.max_steps={steps + 4}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", steps + 4)


def test_two_gloo_ranks_equal_one_process(tmp_path, small_text):
    common = [*SMALL, f"data.path={small_text}", "trainer.max_steps=20"]
    run("train.py", *common, f"hydra.run.dir={tmp_path}/one")
    run("train.py", *common, "trainer=ddp_sim", f"hydra.run.dir={tmp_path}/two")
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert two["steps"] == one["steps"] == 20
    assert two["tokens"] == one["tokens"]
    assert two["val"]["tokens"] == one["val"]["tokens"]
    assert two["val"]["bytes"] == one["val"]["bytes"]
    assert two["val"]["nll"] == pytest.approx(one["val"]["nll"], rel=1e-3)


def test_two_gloo_ranks_stop_at_the_same_step_under_a_wall_clock_budget(tmp_path, small_text):
    """Ranks that disagree by one step would wait for each other forever."""
    fast = "+callbacks.fast._target_=tests.ranks.FastWatch"
    common = [*SMALL, f"data.path={small_text}", "trainer=ddp_sim", fast]
    run(
        "train.py",
        *common,
        "trainer.precision=32-true",
        "trainer.max_steps=null",
        "trainer.max_time=4",
        "trainer.log_every_n_steps=5",
        f"hydra.run.dir={tmp_path}/two",
    )
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] > 5
    assert summary["val"]["bpb"] > 0


def test_a_sweep_runs_every_job_and_reports_a_failure(tmp_path, small_text):
    common = [*SMALL, f"data.path={small_text}", f"hydra.sweep.dir={tmp_path}/sweep"]
    process = start("train.py", "-m", *common, "seed=1,2", "trainer.max_steps=2")
    process.communicate(timeout=300)
    assert process.returncode == 0
    seeds = [
        json.loads((tmp_path / f"sweep/all/seed-{n}/summary.json").read_text())["seed"]
        for n in (1, 2)
    ]
    assert seeds == [1, 2]
    process = start("train.py", "-m", *common, "model.backbone.heads=4,7", "trainer.max_steps=2")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 5
    last = err.strip().splitlines()[-1]
    assert last.startswith(
        "error: 1 of 2 jobs failed; model.backbone.heads-7/seed-1337: model.backbone"
    )


@pytest.mark.parametrize(("debug", "steps"), [("overfit", 80), ("profiler", 10)])
def test_debug_modes(tmp_path, debug, steps):
    out = run(
        "train.py",
        f"debug={debug}",
        FAST_MUON,
        "model.dim=64",
        "model.backbone.heads=4",
        "model.backbone.kv_heads=2",
        "trainer.limit_val_batches=1",
        f"trainer.max_steps={steps}",
        f"hydra.run.dir={tmp_path}/run",
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    if debug == "overfit":
        with open(tmp_path / "run" / "metrics.csv", newline="") as file:
            ce = [float(r["train/ce"]) for r in csv.DictReader(file) if r["train/ce"]]
        assert ce[-1] < 0.5 * ce[0]
    else:
        assert "FIT Profiler Report" in out
        assert "run_training_batch" in out  # a line of its table
