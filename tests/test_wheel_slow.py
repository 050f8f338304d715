"""The program without its checkout: the wheel in a fresh environment, run from a folder of its own.

The environment borrows the packages of this one, except ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.conftest import FAST_MUON, REPO, STARTUP

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
OWN = ("info_nce.py", "conf/objective/info_nce.yaml")
QUICK = ("debug=tiny", FAST_MUON, "trainer.max_steps=2", "sample=false", "data/corpus=text")


CHECKOUT = (REPO / ".git").exists()


def tracked(*options: str) -> list[str]:
    """Return the files of the checkout that git knows."""
    listed = subprocess.check_output(["git", "ls-files", "-z", *options], cwd=REPO, text=True)
    return list(filter(None, listed.split("\0")))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, so that the build leaves nothing among them."""
    folder = tmp_path_factory.mktemp("source")
    if not CHECKOUT:  # an unpacked source distribution
        ignored = (".venv", "logs", "build", "*.egg-info", "__pycache__")
        shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns(*ignored), dirs_exist_ok=True)
        return folder
    for name in tracked("--cached", "--others", "--exclude-standard"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """The folder of the commands of an environment with the wheel."""
    work = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", str(source), "--no-build-isolation", "--no-deps", "-w", str(work)]
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # or pip finds what is there
    subprocess.run([*pip, *build], check=True, env=alone)
    (wheel,) = work.glob("*.whl")
    environment = work / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    scheme = {"base": str(environment), "platbase": str(environment)}
    commands, packages = (
        Path(sysconfig.get_path(n, "venv", scheme)) for n in ("scripts", "purelib")
    )
    python = commands / Path(sys.executable).name
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True, env=alone)
    # A folder named in a .pth file is searched, but its own .pth files are not read: an editable install of
    # this checkout stays out.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return commands


class Outside:
    """A folder elsewhere, in which commands of the installed package run."""

    def __init__(self, commands: Path, folder: Path) -> None:
        self.commands, self.folder = commands, folder
        self.env = {**os.environ, "PYTHONPATH": str(STARTUP), "OMP_NUM_THREADS": "1"}

    def run(self, name: str, *words: str) -> str:
        command = [str(self.commands / name), *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text())


USE = """
import runpy, sys
import jepa_lm
import jepa_lm.utils.paths as paths
print(jepa_lm.__file__)
print(paths.CONF)
print(len(jepa_lm.load("export").continuation("It was", tokens=4)))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Asks where the package lies, lets an exported file write, and starts a command, all in one process."""


def test_a_study_ranks_export_eval_and_the_python_api(installed, tmp_path, small_text):
    outside = Outside(installed, tmp_path)
    for name in OWN:
        place = tmp_path / "mine" / name.removeprefix("conf/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "extension" / name, place)
    text = (f"data.path={small_text}", "data.tokenizer.vocab_size=400")
    own = ("--config-dir", "mine", *QUICK, *text, "objective=info_nce")
    workers = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    outside.run("jepa-train", "-m", *own, "study=same", "seed=1", *workers, "hydra.sweep.dir=study")
    assert outside.run("jepa-study", "ls", "study").count("finished") == 2

    del outside.env["PYTHONPATH"]  # once with the real torchmetrics
    outside.run("jepa-train", *own, "trainer=ddp_sim", "hydra.run.dir=run")
    outside.env["PYTHONPATH"] = str(STARTUP)
    summary = outside.json("run/summary.json")
    assert summary["git"]["commit"] is None
    assert summary["ranks"] == 2
    quick = ("export.max_tokens=2048", "export.codecs=[zlib]")
    outside.run("jepa-export", "ckpt_path=run", "hydra.run.dir=export", *quick)
    card = (tmp_path / "export" / "model_card.md").read_text()
    assert "    jepa-train debug=tiny" in card
    assert "    jepa-eval artifact_path=" in card

    score = (str(installed / "jepa-eval"), "artifact_path=export", "eval.baselines=false")
    printed = outside.run("python", "-c", USE, *score, "hydra.run.dir=eval")
    module, conf, written, *scored = printed.splitlines()
    assert Path(module).is_relative_to(installed.parent)
    assert Path(conf) == Path(module).parent / "conf"
    assert int(written) > 0
    assert "bits per byte" in "".join(scored)


@pytest.mark.skipif(not CHECKOUT, reason="only git says what a checkout has")
def test_the_source_distribution_is_whole(source, tmp_path):
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (file,) = tmp_path.iterdir()
    with tarfile.open(file) as archive:
        files = {m.name.partition("/")[2]: m for m in archive if m.isfile()}
    assert set(tracked()) - files.keys() == set()
    assert files[".ci/run"].mode & 0o100
