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


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git does not ignore, so that the build leaves nothing in the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.check_output(command, cwd=REPO, text=True)
    folder = tmp_path_factory.mktemp("source")
    for name in filter(None, listed.split("\0")):
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


def test_train_sweep_export_and_eval(installed, tmp_path, small_text):
    outside = Outside(installed, tmp_path)
    where = "import jepa_lm, jepa_lm.utils.paths as paths; print(jepa_lm.__file__, paths.CONF)"
    module, conf = map(Path, outside.run("python", "-c", where).split())
    assert module.is_relative_to(installed.parent)
    assert conf == module.parent / "conf"

    for name in OWN:
        place = tmp_path / "mine" / name.removeprefix("conf/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "extension" / name, place)
    text = (f"data.path={small_text}", "data.tokenizer.vocab_size=400")
    own = ("--config-dir", "mine", *QUICK, *text, "objective=info_nce")
    del outside.env["PYTHONPATH"]  # once with the real torchmetrics
    outside.run("jepa-train", *own, "hydra.run.dir=run")
    outside.env["PYTHONPATH"] = str(STARTUP)
    assert outside.json("run/summary.json")["git"]["commit"] is None
    quick = ("export.max_tokens=2048", "export.codecs=[zlib]")
    outside.run("jepa-export", "ckpt_path=run", "hydra.run.dir=export", *quick)
    printed = outside.run(
        "jepa-eval", "artifact_path=export", "eval.baselines=false", "hydra.run.dir=eval"
    )
    assert "bits per byte" in printed
    card = (tmp_path / "export" / "model_card.md").read_text()
    assert "    jepa-train debug=tiny" in card
    assert "    jepa-eval artifact_path=" in card

    outside.run("jepa-train", "-m", *own, "jepa.weight=0.1,0.2", "hydra.sweep.dir=sweep")
    assert outside.run("jepa-study", "ls", "sweep").count("finished") == 2


def test_the_source_distribution_is_whole(source, tmp_path):
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (file,) = tmp_path.iterdir()
    with tarfile.open(file) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    listed = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    for folder in ("conf", "hydra_plugins", "jepa_lm", "docs", "tests"):
        wanted = {name for name in listed if name.startswith(f"{folder}/")}
        assert wanted
        assert wanted <= found
    assert {"pyproject.toml", "train.py", "eval.py", "export.py", "LICENSE"} <= found
