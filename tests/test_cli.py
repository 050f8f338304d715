"""The command line: exit codes, flags, quick answers, how to go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.errors import MissingConfigException

from jepa_lm import cli
from jepa_lm.training.run_folder import keep_overrides
from jepa_lm.utils import paths
from jepa_lm.utils.explaining import explain
from jepa_lm.utils.signals import Stopped
from tests.conftest import REPO


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--lr", "0.1"],
            "unrecognized arguments: --lr 0.1; settings are given as key=value without dashes",
        ),
        (["--experimental-rerun=config.pickle"], "would execute a file's contents"),
        (["-m", "--cfg=job"], "use only one of them"),
        (["--resolve"], "--resolve: only works with --cfg"),
        (["seed"], "seed: a setting is given as key=value"),
        (["task_name='a"], "unclosed quotation mark"),
    ],
)
def test_a_flag_or_a_word_that_is_none(command, words, said):
    code, line = command("eval", *words)
    assert code == 2
    assert said in line


def test_flags_may_stand_behind_the_overrides(command, monkeypatch, tmp_path):
    """argparse alone treats such flags as unknown arguments."""
    scored = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.run, "evaluate", lambda cfg: scored.append(cfg.ckpt_path))
    assert command("eval", "ckpt_path=a,b", "-m", "task_name=b")[0] == 0
    assert scored == ["a", "b"]


@pytest.mark.slow
def test_over_the_cap_is_exit_code_three(command, trained):
    code, line = command("export", f"ckpt_path={trained.folder}", "export.cap_bytes=1000")
    assert code == 3
    assert "export.cap_bytes=1000" in line


def test_last_is_the_newest_run(command, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, line = command("export", "ckpt_path=last")
    assert code == 2
    assert "ckpt_path=last: no checkpoints/*.ckpt" in line
    for name in ("old", "new"):
        folder = tmp_path / "logs" / "train" / "runs" / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes(trained.checkpoint.read_bytes())
        os.utime(folder / "last.ckpt", (1, 1 if name == "old" else 2))
    from jepa_lm.model.checkpoint import find_checkpoint

    assert find_checkpoint("last").parts[-3] == "new"


SHOWN = [("train",), ("eval",), ("export",)] + [
    pytest.param(("train", f"experiment={path.stem}"), marks=pytest.mark.slow)
    for path in sorted((REPO / "conf" / "experiment").glob("*.yaml"))
]


@pytest.mark.parametrize("words", SHOWN)
def test_a_config_is_shown_resolved_and_no_folder_is_made(monkeypatch, capsys, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{words[0]}.py", *words[1:], "--cfg", "job", "--resolve"])
    assert cli.launch(words[0]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["paths"]["run_dir"].startswith("logs/")
    assert "${" not in json.dumps(shown)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["ckpt_path=auto"]])
def test_a_stopped_run_shows_the_command_that_goes_on(command, monkeypatch, tmp_path, words):
    def stop(cfg):
        keep_overrides(cfg, Path(cfg.paths.run_dir))
        raise Stopped(signal.SIGTERM) if words else KeyboardInterrupt

    monkeypatch.setattr(cli.run, "train", stop)
    given = ['sampling.prompt="It\'s"', "seed=2"]
    code, line = command("train", *given, *words)
    said, _, again = line.partition("; to go on: ")
    assert (code, said) == ((143, "stopped by SIGTERM") if words else (130, "interrupted"))
    where = f"hydra.run.dir={tmp_path}/out"
    assert shlex.split(again) == ["python", "train.py", *given, where, "ckpt_path=auto"]


@pytest.mark.slow
def test_stdout_of_describe_is_json_only(tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", "describe=true", f"hydra.run.dir={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["shipped"] > 0


@pytest.mark.parametrize("script", ["train.py", "eval.py", "export.py"])
def test_a_python_without_the_packages_is_told_in_one_line(script):
    alone = subprocess.run(
        [sys.executable, "-S", script], cwd=REPO, capture_output=True, text=True, env={}
    )
    assert alone.returncode == 2
    (line,) = alone.stderr.splitlines()
    assert "has no hydra; run `make install`, then `source .venv/bin/activate`" in line


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm"])
def test_a_launcher_of_an_extra_names_it(launcher):
    missing = MissingConfigException("", missing_cfg_file=f"hydra/launcher/{launcher}")
    said = f"hydra/launcher={launcher}: is not installed; pip install 'jepa_lm[sweep]'"
    assert explain(missing, "train") == (said, 2)


def test_messages_name_the_command_that_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert paths.program("eval") == "eval.py"
    assert paths.called("train") == ["python", "train.py"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jepa-train"])
    assert paths.program("eval") == "jepa-eval"
    assert paths.called("train") == ["jepa-train"]


def test_modules_beside_the_users_yaml_are_found(command, monkeypatch, tmp_path):
    """By this process, and by those that it starts."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    given = f"--config-dir={tmp_path}"
    assert command("train", given, "a=b=c")[0] == 2
    assert sys.path[-1] == str(tmp_path)
    assert os.environ["PYTHONPATH"] == f"before{os.pathsep}{tmp_path}"
    said = f"error: {given}/none: no such folder; it holds YAML as conf/ does"
    assert command("train", f"{given}/none") == (2, said)


EDITABLE = """
import importlib.util, sys
package = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location("jepa_lm", package)
sys.modules["jepa_lm"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["jepa_lm"])
from jepa_lm.cli import train
sys.exit(train())
"""
"""An editable install finds modules without a folder on `sys.path`."""


def test_the_sweeper_is_found_in_an_editable_install(tmp_path):
    package = str(REPO / "jepa_lm" / "__init__.py")
    done = subprocess.run(
        [sys.executable, "-c", EDITABLE, package, "--cfg", "hydra", "--package", "hydra.sweeper"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_target_: hydra_plugins.jepa_lm_study.ResumableSweeper" in done.stdout
