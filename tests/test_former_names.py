"""Files from before classes were renamed still load: checkpoints, artifacts, sweeps, users' YAML.

The last version with the old names made the files in `former/` from the overrides below.
"""

from __future__ import annotations

import csv
import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from jepa_lm.artifact.loaded_model import load_data, load_model, weights_of
from jepa_lm.artifact.loading import load_artifact
from jepa_lm.cli import launch
from jepa_lm.data.windows import StandardWindows
from jepa_lm.evaluation.scoring import Scorer, score_windows
from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.run import train
from jepa_lm.study.manifest import load
from jepa_lm.study.runs import Run
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.former_names import ADDED, FORMER, first, modern, modern_states
from jepa_lm.utils.provenance import config_hash
from tests.runs import rows, summary

FILES = Path(__file__).parent / "former"
WORDS = (
    "data=bytes256", "data.seq_len=32", "data.batch_tokens=128", "data.val_batch_tokens=512",
    "model.dim=16", "model.backbone.layers=2", "model.backbone.heads=2", "model.backbone.kv_heads=1",
    "model.backbone.rope_dims=4", "model.bigram.buckets=32", "model.bigram.width=8",
    "objective=vicreg", "jepa.predictor.hidden=16",
    "quantization=int6_gptq", "quantization.training.start=0.5", "quantization.rules.weights.min_values=64",
    "trainer.limit_val_batches=2", "trainer.precision=32-true", "trainer.log_every_n_steps=1",
    "checkpoint.every_n_steps=4", "checkpoint.keep=5", "compile=false", "sample=false", "logger=csv",
    "average.decay=0.9",
)  # fmt: skip
OF_THAT_DAY = ("optimizer.groups.matrices.ns_dtype=bfloat16", "jepa.diagnostics.min_std=0.01")
"""Defaults that have changed since."""


def test_every_class_is_where_the_table_says():
    from hydra.utils import get_class

    for today in FORMER.values():
        get_class(today)
    with_former_names = first(modern({name: {"_target_": name} for name in FORMER}))
    assert with_former_names == {name: {"_target_": name} for name in FORMER}


def test_a_setting_that_was_added_later_changes_no_hash_until_it_is_used():
    from hydra.utils import get_class

    for name, implied in ADDED.items():
        before = {"model": [{"_target_": name, "dim": 8}]}
        assert first(modern(before)) == before
        assert modern(before)["model"][0] == {"_target_": name, "dim": 8, **implied}
        for key, value in implied.items():
            assert inspect.signature(get_class(name)).parameters[key].default == value
            used = {"_target_": name, key: "another"}
            assert first(modern(used))[key] == modern(used)[key] == "another"


def test_triton_was_the_kernels_of_mamba_ssm_before_there_were_our_own():
    model = {"_target_": "jepa_lm.model.LanguageModel", "kernel": "triton"}
    assert modern({"model": model})["model"]["kernel"] == "mamba_ssm"
    today = model | {"residual": "float32"}  # a setting that came with our own
    assert modern({"model": today})["model"]["kernel"] == "triton"
    assert modern({"model": model | {"kernel": "auto"}})["model"]["kernel"] == "auto"


def test_a_checkpoint_goes_on_as_it_would_have(compose, tmp_path):
    train(
        compose(
            "train",
            *WORDS,
            "trainer.max_steps=8",
            f"ckpt_path={FILES / 'step-4.ckpt'}",
            run_dir=tmp_path,
        )
    )
    with open(FILES / "metrics.csv", newline="") as file:
        before = [float(r["train/loss"]) for r in csv.DictReader(file) if r["train/loss"]]
    after = [float(r["train/loss"]) for r in rows(tmp_path) if r["train/loss"]]
    assert after == pytest.approx(before[4:], rel=1e-4)
    assert summary(tmp_path)["val"]["bpb"] == pytest.approx(7.528356, abs=1e-3)


def test_states_lie_with_the_callbacks_that_keep_them_today():
    saved = torch.load(FILES / "step-4.ckpt", weights_only=True)
    states = read_checkpoint(FILES / "step-4.ckpt")["callbacks"]
    assert states["MeasureObjective"] == saved["watch"]
    assert states["FiniteGuard"] == {"skipped": saved["skipped"]}
    assert states["QuantizationAwareTraining"] == {"first_step": saved["stored_since"]}
    own = {"skipped": 1, "callbacks": {"FiniteGuard": {"skipped": 2}}}
    assert modern_states(own) == {"callbacks": {"FiniteGuard": {"skipped": 2}}}


def test_a_checkpoint_loads_into_the_module():
    loaded = LanguageModelTask.load_from_checkpoint(FILES / "step-4.ckpt", weights_only=True)
    assert type(loaded.objective.schedule).__module__ == "jepa_lm.schedules.factors"


def test_an_artifact_is_scored(tmp_path):
    loaded = load_model(None, str(FILES / "artifact.zlib"))
    assert weights_of(loaded) == load_artifact(FILES / "artifact.zlib").meta["weights_sha256"]
    data = load_data(loaded, {"cache_dir": str(tmp_path)})
    windows = StandardWindows(data.streams["val"], seq_len=data.seq_len, rows=16, limit=2049)
    scorer = Scorer.of(
        loaded.model, data.split("val").byte_counter(), torch.device("cpu"), "32-true"
    )
    nats, tokens, _ = score_windows(scorer, windows).tolist()
    assert tokens == 2048
    assert nats / tokens == pytest.approx(5.2, abs=0.1)


def test_half_a_sweep_goes_on(tmp_path, monkeypatch, capsys):
    sweep = shutil.copytree(FILES / "sweep", tmp_path / "sweep")
    hashes = {job.folder: job.config_hash for job in load(sweep).jobs}
    words = (
        "-m",
        *WORDS,
        "trainer.max_steps=2",
        "seed=1,2",
        f"hydra.sweep.dir={sweep}",
        *OF_THAT_DAY,
    )
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    assert launch("train") == 0
    assert "2 jobs in" in (told := capsys.readouterr().err)
    assert "1 of them already finished" in told
    assert hashes == {job.folder: job.config_hash for job in load(sweep).jobs}
    assert summary(sweep / "all" / "seed-2")["config_hash"] == hashes["all/seed-2"]
    assert "another config" not in (sweep / "report.md").read_text()


def test_a_hash_is_that_of_the_first_names():
    recorded = json.loads((FILES / "sweep" / "all" / "seed-1" / "config.json").read_text())
    known = summary(FILES / "sweep" / "all" / "seed-1")["config_hash"]
    assert "jepa_lm.optim.schedule" in json.dumps(recorded)
    assert config_hash(recorded) == config_hash(modern(recorded)) == known
    assert Run(FILES / "sweep" / "all" / "seed-1").config == modern(recorded)


def test_yaml_of_ones_own_may_have_the_former_name(compose):
    cfg = compose("train", "objective=patch")
    node = {"_target_": "jepa_lm.optim.schedule.Ramp", "steps": 10}
    OmegaConf.update(cfg, "jepa.schedule", node, merge=False, force_add=True)
    config = resolve(cfg)
    assert config["jepa"]["schedule"]["_target_"] == "jepa_lm.schedules.factors.Ramp"
    check(config)
    node["_target_"] = "jepa_lm.optim.schedule.Nothing"
    OmegaConf.update(cfg, "jepa.schedule", node, merge=False)
    with pytest.raises(
        UserError, match=r"jepa\.schedule\._target_=jepa_lm\.optim\.schedule\.Nothing"
    ):
        check(resolve(cfg))
