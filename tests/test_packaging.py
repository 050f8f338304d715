"""No bad release of a dependency can be installed, and the wheel has every file that the package reads."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import REPO

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
WANTED = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize(
    ("package", "good", "bad"),
    [
        ("hydra-core", ["1.3.8"], ["1.4.0rc1", "1.4.0", "1.3.2"]),
        ("omegaconf", ["2.3.1"], ["2.4.0", "2.4.0.dev3", "2.2"]),
        ("lightning", ["2.6.4", "2.6.6"], ["2.6.2", "2.6.3"]),
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
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_wheel_has_every_file_that_the_package_reads():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["jepa_lm"]
    package = REPO / "jepa_lm"
    data = [p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert package / "utils" / "signatures.json" in data
    for path in data:
        assert any(fnmatch(str(path.relative_to(package)), pattern) for pattern in patterns), path
