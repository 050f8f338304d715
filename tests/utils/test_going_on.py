"""Commands that go on with a run: they can be pasted, and have its settings."""

from __future__ import annotations

import shlex
import sys

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from jepa_lm.training.resume import _is_kept, _may_differ, _other_settings, _with_its_settings
from jepa_lm.utils.going_on import OVERRIDES, command_of_run, same_command

WORDS = ["objective=vicreg", 'sampling.prompt="It\'s"', "ckpt_path=last", "seed=2", "~model/bigram"]


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that was started with `WORDS`; its name needs quotes."""
    path = tmp_path / "a run"
    (path / OVERRIDES).parent.mkdir(parents=True)
    (path / OVERRIDES).write_text(yaml.safe_dump(WORDS))
    return path


def test_its_overrides_are_kept_but_for_those_that_change(folder):
    again = command_of_run(folder, {"ckpt_path": "auto"}, ["seed=3", "trainer.max_steps=9"])
    assert again is not None
    kept = [*WORDS[:2], WORDS[4], "seed=3", "trainer.max_steps=9", "ckpt_path=auto"]
    assert shlex.split(again) == ["python", "train.py", *kept]


@pytest.mark.parametrize(
    ("script", "start"),
    [
        ("repo/train.py", ["python", "repo/train.py"]),
        ("/somewhere/bin/jepa-train", ["jepa-train"]),
        ("/somewhere/pytest", ["python", "train.py"]),
    ],
)
def test_it_starts_as_this_one_did_and_names_the_same_config_folder(
    folder, monkeypatch, script, start
):
    monkeypatch.setattr(sys, "argv", [script, "-m", "--config-dir", "my configs", "seed=3"])
    again = command_of_run(folder, {})
    assert again is not None
    assert shlex.split(again) == [*start, "--config-dir", "my configs", *WORDS]
    same = same_command({"hydra.sweep.dir": "a"})
    assert shlex.split(same) == [*start, *sys.argv[1:], "hydra.sweep.dir=a"]


@pytest.mark.parametrize("content", ["{a: 1}", "[1, 2]", "[", "\0"])
def test_a_folder_that_does_not_say_gives_none(tmp_path, content):
    assert command_of_run(tmp_path, {}) is None
    (tmp_path / OVERRIDES).parent.mkdir()
    (tmp_path / OVERRIDES).write_text(content)
    assert command_of_run(tmp_path, {}) is None


@pytest.fixture
def command_line(monkeypatch):
    """command_line(words) makes these the overrides of this command."""

    def give(*words: str) -> None:
        now = OmegaConf.create({"hydra": {"overrides": {"task": list(words)}}})
        monkeypatch.setattr(HydraConfig.instance(), "cfg", now)

    return give


def test_a_refused_resume_offers_that_runs_settings_and_keeps_those_that_may_differ(
    folder, command_line, tmp_path
):
    command_line("trainer.max_steps=9", "model.dim=64", "seed=5", "data=text", "logger=wandb")
    own = tmp_path / "own"
    said = _with_its_settings(folder / "checkpoints" / "last.ckpt", own, _may_differ)
    words = [*WORDS[:2], *WORDS[3:], "trainer.max_steps=9", "logger=wandb"]
    assert shlex.split(said.partition("settings: ")[2]) == [
        "python",
        "train.py",
        *words,
        f'ckpt_path="{folder}"',
    ]
    said = _with_its_settings(folder / "checkpoints" / "step-3.ckpt", own, _may_differ)
    assert shlex.split(said)[-1] == f'ckpt_path="{folder}/checkpoints/step-3.ckpt"'
    said = _with_its_settings(folder / "checkpoints" / "step-3.ckpt", folder, _may_differ)
    assert shlex.split(said)[-2:] == [f'hydra.run.dir="{folder}"', "ckpt_path=auto"]


def test_other_settings_are_listed_unless_the_command_names_them(folder, command_line, tmp_path):
    """A bare `ckpt_path=last` once went on with the default learning rate, silently."""
    lr, bits = "optimizer.groups.matrices.lr", "quantization.rules.weights.format.bits"
    before = {lr: 0.004, bits: 6, "jepa.weight": 0.3, "ce_weight": 1.0, "guard.skip": 0}
    now = {lr: 0.02, bits: 8, "jepa.weight": 0.1, "ce_weight": 2.0, "guard.skip": 5}
    command_line("ckpt_path=last", "jepa.weight=0.1", "trainer.max_steps=9", "model.dim=64")
    listed = [lr, bits, "jepa.weight", "ce_weight", "guard.skip"]
    said = _other_settings(listed, before, now)
    assert said == (
        f"goes on with other settings ({lr}: was 0.004, is now 0.02; {bits}: was 6, is now 8; "
        "ce_weight: was 1.0, is now 2.0; and 1 more)"
    )
    offer = _with_its_settings(folder / "checkpoints" / "last.ckpt", tmp_path / "own", _is_kept)
    kept = ["jepa.weight=0.1", "trainer.max_steps=9", f'ckpt_path="{folder}"']
    words = [*WORDS[:2], *WORDS[3:], *kept]
    assert shlex.split(offer.partition("settings: ")[2]) == ["python", "train.py", *words]
    command_line("quantization=int8", f"{lr}=0.02", "guard.skip=5", "ce_weight=2", "jepa.weight=1")
    assert _other_settings(listed, before, now) == ""
