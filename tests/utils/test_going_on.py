"""Commands that go on with a run: they can be pasted, and have its settings."""

from __future__ import annotations

import shlex
import sys

import pytest
import yaml

from jepa_lm.training.resume import _with_its_settings
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


def test_a_refused_resume_offers_that_runs_settings_and_keeps_those_that_may_differ(
    folder, monkeypatch
):
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    given = ["trainer.max_steps=9", "model.dim=64", "seed=5", "data=text", "logger=wandb"]
    now = OmegaConf.create({"hydra": {"overrides": {"task": given}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", now)
    said = _with_its_settings(folder / "checkpoints" / "last.ckpt")
    words = [*WORDS[:2], *WORDS[3:], "trainer.max_steps=9", "logger=wandb"]
    assert shlex.split(said.partition("settings: ")[2]) == [
        "python",
        "train.py",
        *words,
        f'ckpt_path="{folder}"',
    ]
    said = _with_its_settings(folder / "checkpoints" / "step-3.ckpt")
    assert shlex.split(said)[-1] == f'ckpt_path="{folder}/checkpoints/step-3.ckpt"'
