"""Checkpoints hold plain containers and clean keys."""

from __future__ import annotations

import json

import pytest
import torch

from jepa_lm.model.checkpoint import inference_model, read_checkpoint
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.errors import UserError
from tests.runs import Watch, fit, weights


def test_checkpoints_hold_plain_containers_only(trained):
    """A DictConfig would make this load fail."""
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    assert type(checkpoint["hyper_parameters"]["config"]) is dict
    json.dumps(checkpoint["hyper_parameters"]["config"])
    loaded = LanguageModelTask.load_from_checkpoint(trained.checkpoint, weights_only=True)
    assert loaded.config["seed"] == 1337


def test_a_dictconfig_in_a_checkpoint_would_be_seen(trained, tmp_path):
    """Planted bug: a DictConfig in the hyper-parameters."""
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    checkpoint["hyper_parameters"]["config"] = trained.config
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="more than tensors and plain values"):
        read_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.slow
def test_a_wrapped_module_would_be_seen(small, tmp_path, monkeypatch):
    """Planted bug: compiling the module by wrapping it renames its keys."""
    setup = LanguageModelTask.setup

    def wraps(self, stage):
        setup(self, stage)
        self.model = torch.compile(self.model, backend="eager")

    monkeypatch.setattr(LanguageModelTask, "setup", wraps)
    fit(small("trainer.max_steps=3"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert [k for k in weights(path) if "_orig_mod" in k]
    with pytest.raises(UserError, match="_orig_mod"):
        inference_model(read_checkpoint(path))


def test_compiled_runs_have_clean_keys_and_load_either_way(small, tmp_path, monkeypatch):
    """No key in a checkpoint contains `_orig_mod.`."""
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda f: compiled.append(f) or torch._dynamo.optimize("eager")(f)
    )
    watch = Watch()
    fit(small("compile=true", "trainer.max_steps=4", run_dir=tmp_path / "a"), watch)
    assert len(compiled) == 1
    path = tmp_path / "a" / "checkpoints" / "last.ckpt"
    assert not [k for k in weights(path) if "_orig_mod" in k]
    inference_model(read_checkpoint(path))
    eager, again = Watch(), Watch()
    fit(small("trainer.max_steps=7", run_dir=tmp_path / "b"), eager, ckpt=path)
    fit(small("compile=true", "trainer.max_steps=7", run_dir=tmp_path / "c"), again, ckpt=path)
    assert eager.losses == pytest.approx(again.losses, rel=1e-5)
