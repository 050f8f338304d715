"""The page of `--help`: short, complete, and every example on it works."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from jepa_lm.utils.help_page import EXAMPLES, WIDTH, page
from jepa_lm.utils.paths import CONF
from tests.conftest import REPO

LONGEST = 60


@pytest.mark.parametrize("command", EXAMPLES)
def test_it_fits_on_a_screen(command):
    lines = page(command).splitlines()
    assert len(lines) <= LONGEST
    assert max(map(len, lines)) <= WIDTH


def test_every_choice_is_on_it():
    """Except the only option of a group, which is no choice."""
    shown = set(page("train").replace("*", "").replace(",", "").split())
    for path in CONF.rglob("*.yaml"):
        group = path.relative_to(CONF).parent
        alone = len(list(path.parent.glob("*.yaml"))) == 1
        if str(group) in (".", "hydra", "eval") or group.parts[0].startswith("debug_") or alone:
            continue
        name = path.stem if group.name != "recipes" else f"recipes/{path.stem}"
        assert name in shown or name == "base", path
        assert str(group) in shown or group.name == "recipes", path


@pytest.mark.parametrize(
    ("command", "words"), [(command, words) for command in EXAMPLES for words in EXAMPLES[command]]
)
def test_an_example_composes(compose, command, words):
    """With the first of several values."""
    skipped = ("-m", "study=ablation", "seed=range(1,6)")
    given = [word for word in shlex.split(words) if word not in skipped]
    compose(command, *(word if "[" in word else word.partition(",")[0] for word in given))


@pytest.mark.parametrize("command", EXAMPLES)
def test_launchers_of_hydra_and_its_plugins_are_on_it(command):
    (row,) = (line for line in page(command).splitlines() if "hydra/launcher" in line)
    for name in ("basic*", "joblib", "submitit_local", "submitit_slurm", "gpus", "slurm"):
        assert name in row.replace(",", "").split()


def test_an_installed_command_shows_its_own_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/jepa-train"])
    shown = page("train")
    assert shown.startswith("jepa-train [FLAG ...]")
    assert "train.py" not in shown


def test_it_is_shown_without_loading_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "eval.py", "seed=1", "--help"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert (done.returncode, done.stdout) == (0, page("eval") + "\n")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "numpy"}
