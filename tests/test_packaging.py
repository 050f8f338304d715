"""No bad release of a dependency can be installed; the wheel is complete; CI and image fit pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import EntryPoint, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.conftest import REPO

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
PYTHONS = [f"3.{n}" for n in range(8, 20) if f"3.{n}.0" in SpecifierSet(PROJECT["requires-python"])]
WANTED = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize(
    ("package", "good", "bad"),
    [
        ("hydra-core", ["1.3.8"], ["1.4.0rc1", "1.4.0", "1.3.2"]),
        ("omegaconf", ["2.3.1"], ["2.4.0", "2.4.0.dev3", "2.2"]),
        ("lightning", ["2.6.4", "2.6.6"], ["2.6.2", "2.6.3", "2.7.0"]),
        ("torch", ["2.11.0", "2.13.0"], ["2.10.0", "2.14.0"]),
    ],
)
def test_ranges(package, good, bad):
    for release in good:
        assert WANTED[package].contains(release, prereleases=True)
    for release in bad:
        assert not WANTED[package].contains(release, prereleases=True)


@pytest.mark.parametrize("package", sorted(WANTED))
def test_what_is_installed_is_in_range(package):
    installed = Version(version(package))
    assert WANTED[package].contains(installed.public, prereleases=False)


def test_python_range():
    assert PYTHONS == ["3.11", "3.12", "3.13"]


def test_no_requirement_of_an_extra_is_written_twice():
    extras = PROJECT["optional-dependencies"]
    names = [r.name for words in extras.values() for r in map(Requirement, words)]
    ours = [*names, *WANTED]
    assert len(ours) == len(set(ours))
    together = next(r for r in map(Requirement, extras["dev"]) if r.name == "jepa_lm")
    # Mamba's kernels need a GPU's compiler, no test builds a site, and `make harness` installs its own.
    assert together.extras == extras.keys() - {"dev", "mamba", "docs", "harness"}


def test_the_wheel_has_every_package():
    found = {"jepa_lm.conf"}
    for folder in ("jepa_lm", "hydra_plugins"):
        modules = (REPO / folder).rglob("*.py")
        found |= {".".join(path.parent.relative_to(REPO).parts) for path in modules}
    assert SETUPTOOLS["packages"] == sorted(found)


@pytest.mark.parametrize("package", SETUPTOOLS["package-data"])
def test_the_wheel_has_every_file_that_the_package_reads(package):
    folder = REPO / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
    wanted = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert wanted
    patterns = SETUPTOOLS["package-data"][package]
    assert {path for pattern in patterns for path in folder.glob(pattern)} == wanted


@pytest.mark.parametrize(("name", "value"), PROJECT["scripts"].items())
def test_commands_are_functions(name, value):
    assert callable(EntryPoint(name, value, "console_scripts").load())


def newest(specifier: SpecifierSet) -> str:
    """Return the newest minor release that a range with a bound allows, such as 2.13 of <2.14."""
    (bound,) = (Version(s.version) for s in specifier if s.operator == "<")
    return f"{bound.major}.{bound.minor - 1}"


def test_the_image_has_what_pyproject_says():
    """All sources, the newest Python and PyTorch, extras that exist, the CUDA build that was measured."""
    text = (REPO / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert all((REPO / source).exists() for source in copied)
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= copied
    folders = {SETUPTOOLS["package-dir"].get(p, p.split(".")[0]) for p in SETUPTOOLS["packages"]}
    assert folders <= copied
    default = dict(line.removeprefix("ARG ").split("=") for line in lines if line[:4] == "ARG ")
    assert default["PYTHON"] == PYTHONS[-1] == newest(SpecifierSet(PROJECT["requires-python"]))
    assert WANTED["torch"].contains(default["TORCH"])
    assert default["TORCH"].startswith(f"{newest(WANTED['torch'])}.")
    installs = [line for line in lines if line.startswith("RUN pip install ")]
    assert [line.split()[-1] for line in installs if "torch==${TORCH}" in line] == [
        '"https://download.pytorch.org/whl/${BUILD}"'
    ]
    (extras,) = re.findall(r"\.\[([\w,]+)\]", "".join(installs))
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert default["BUILD"] == "cpu"
    (cuda,) = re.findall(r"BUILD=(cu\d+)", text)
    assert f"+{cuda} " in (REPO / "docs" / "gpu.md").read_text().replace(",", " ")
    (command,) = (line.removeprefix("CMD ") for line in lines if line.startswith("CMD "))
    assert json.loads(command)[0] in PROJECT["scripts"]


def test_ci_runs_on_every_python_and_every_system():
    jobs = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())["jobs"]
    for target in ("harness", "docs"):
        assert jobs[target]["steps"][-1]["run"] == f"make {target} PYTHON=python"
    assert jobs["tests"]["strategy"]["matrix"]["python"] == PYTHONS
    assert jobs["tests"]["steps"][-1]["run"].endswith(".ci/run")
    assert jobs["smoke"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
    steps = jobs["smoke"]["steps"]
    assert next(s["with"]["python-version"] for s in steps if "with" in s) in PYTHONS
    started = {step["run"].split()[0] for step in steps if "run" in step}
    assert {"jepa-train", "jepa-export", "jepa-eval"} <= started & PROJECT["scripts"].keys()


def test_a_commit_is_checked_as_make_lint_does():
    config = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())
    hooks = {hook["entry"] for repo in config["repos"] for hook in repo["hooks"]}
    recipe = (REPO / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    steps = [line.removeprefix("\t$(BIN)/") for line in recipe.splitlines()[1:]]
    assert hooks == {step.removesuffix(" .").replace(" --check", "") for step in steps}


def test_contributing_says_what_ci_runs():
    lines = (REPO / "CONTRIBUTING.md").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(".ci/run "))
    said = [line.split("#")[0].strip() for line in lines[:at] if line.startswith("make ")][-3:]
    script = (REPO / ".ci" / "run").read_text()
    assert re.findall(r"^make .*$", script, re.MULTILINE) == said
    assert "these three" in lines[at]


STUB = """#!/bin/sh
if [ "$1" = -m ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/pip"; fi
if [ "$1" = install ]; then echo "$4" >> installed.txt; fi
"""
"""Stands in for Python, which makes an environment, and for the pip in it, which notes what it installs."""


def test_one_environment_is_made_for_users_and_grows_for_tests(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPO / name, tmp_path)
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def installs(target: str) -> list[str]:
        noted = tmp_path / "installed.txt"
        noted.write_text("")
        subprocess.run(["make", "-s", target, f"PYTHON={stub}"], cwd=tmp_path, check=True)
        return noted.read_text().split()

    assert installs("install") == ["."]
    assert installs("install") == []
    assert installs("develop") == [".[dev]"]
    assert installs("install") == installs("develop") == []
    for stamp in (tmp_path / ".venv").glob("installed*"):
        os.utime(stamp, (0, 0))  # pyproject.toml has changed since
    assert installs("install") == ["."]
    assert installs("develop") == [".[dev]"]
