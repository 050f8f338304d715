"""Records of a run: summary, config, hashes, metrics."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch

from jepa_lm.model.checkpoint import inference_model, read_checkpoint
from jepa_lm.run import train
from jepa_lm.training.flops import flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from tests.runs import rows


def test_summary_holds_what_a_study_needs(trained):
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["seed"] == 1337
    assert summary["steps"] == 6
    assert summary["tokens"] == 6 * 256
    assert summary["seconds"] > 0
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / summary["seconds"])
    shipped = sum(
        p.numel() for p in inference_model(read_checkpoint(trained.checkpoint)).parameters()
    )
    assert summary["parameters"] == {"shipped": shipped, "training_only": 0}
    assert summary["val"]["bpb"] == trained.bpb
    assert summary["val"]["weights"] == "raw"
    assert summary["compiled"] is False
    assert summary["versions"]["torch"] == torch.__version__
    packages = {
        "python",
        "jepa_lm",
        "lightning",
        "hydra-core",
        "omegaconf",
        "sentencepiece",
        "numpy",
    }
    assert packages < summary["versions"].keys()
    assert len(summary["config_hash"]) == 16
    assert set(summary["git"]) == {"commit", "dirty", "diff"}
    assert summary["flops_per_token"]["model"] > 6 * shipped * 0.2
    assert summary["flops_per_token"]["objective"] == 0
    assert summary["memory_bytes"] > 4 * shipped


def test_a_summary_has_the_flops_of_its_objective(logged):
    task = LanguageModelTask(json.loads((logged.folder / "config.json").read_text()))
    flops, recorded = flops_per_token(task), logged.summary["flops_per_token"]
    assert recorded["model"] == flops["model"]
    # Its schedule begins at 0, so the first of the six steps had no objective.
    assert recorded["objective"] == pytest.approx(5 / 6 * flops["objective"], rel=1e-4)
    assert flops["objective"] > 0.2 * flops["model"]


def test_a_finished_run_has_a_page(logged, trained):
    page = (logged.folder / "run.html").read_text()
    assert f"{logged.summary['val']['bpb']:.4f} bits per byte" in page
    assert "always predicting the mean target" in page
    assert "predicted latents" not in (trained.folder / "run.html").read_text().lower()
    assert not (trained.folder / "sample.txt").exists()  # sample=false


def test_a_run_keeps_the_config_that_it_was_started_with(trained):
    """As resolved, whatever else was read or chosen afterwards."""
    from jepa_lm.utils.provenance import config_hash

    kept = json.loads((trained.folder / "config.json").read_text())
    assert kept == resolve(trained.config)
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["config_hash"] == config_hash(kept)


def test_the_source_is_known_by_a_hash(trained):
    from jepa_lm.utils.provenance import source_hash

    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["source"] == source_hash()
    assert len(summary["source"]) == 16


def test_uncommitted_changes_are_told_apart_by_a_hash(tmp_path, monkeypatch):
    """Recorded: the commit, whether it is dirty, and a hash of the difference."""
    import jepa_lm
    from jepa_lm.utils.provenance import git_state

    package = tmp_path / "jepa_lm"
    package.mkdir()
    (package / "__init__.py").write_text("one")

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(jepa_lm, "__file__", str(package / "__init__.py"))
    clean = git_state()
    assert (clean["dirty"], clean["diff"], len(clean["commit"])) == (False, None, 40)
    seen = []
    for text in ("two", "three", "two"):
        (package / "__init__.py").write_text(text)
        seen.append(git_state())
    assert all(state["dirty"] and state["commit"] == clean["commit"] for state in seen)
    assert seen[0] == seen[2] != seen[1]


def test_config_hash_follows_what_is_computed(small):
    from jepa_lm.utils.provenance import config_hash

    def of(*overrides, **kwargs):
        return config_hash(resolve(small(*overrides, **kwargs)))

    assert of() == of("task_name=other", "tags=[a]", "checkpoint.every_n_steps=7")
    assert of() != of("seed=2")
    assert of() != of("optimizer.groups.matrices.lr=0.5")


def test_a_run_resumed_in_its_folder_keeps_its_metrics(small, tmp_path):
    run_dir = tmp_path / "run"
    train(small("trainer.max_steps=4"))
    before = rows(run_dir)
    train(small("trainer.max_steps=8", f"ckpt_path={run_dir}"))
    after = rows(run_dir)
    assert [r["train/ce"] for r in before] == [r["train/ce"] for r in after[: len(before)]]
    assert len(after) > len(before)
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 8


def test_metrics_have_the_promised_names(trained):
    names = set(rows(trained.folder)[0])
    assert {"train/loss", "train/ce", "train/bpb", "val/nll", "val/bpb", "step"} <= names
    assert "train/tokens_per_second" in names
    assert any(name.startswith("lr-") for name in names)
    last = [r for r in rows(trained.folder) if r["val/bpb"]][-1]
    assert float(last["val/bpb"]) == pytest.approx(trained.bpb, rel=1e-6)


def test_a_checkpoint_without_its_run_folder_still_evaluates(trained, compose, tmp_path):
    from jepa_lm.run import evaluate

    moved = tmp_path / "elsewhere.ckpt"
    shutil.copy(trained.checkpoint, moved)
    got = evaluate(compose("eval", f"ckpt_path={moved}", "eval.baselines=false"))
    assert got == pytest.approx(trained.bpb, abs=1e-6)


def test_the_git_state_at_the_start_is_kept(small, tmp_path, monkeypatch):
    """A commit made during the run is not what ran."""
    states = iter([{"commit": "ab", "dirty": True, "diff": "cd"}])
    monkeypatch.setattr("jepa_lm.commands.train.git_state", lambda: next(states))
    train(small(run_dir=tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["git"] == {"commit": "ab", "dirty": True, "diff": "cd"}
