"""No release candidate or compromised release of a dependency can be installed."""

from __future__ import annotations

import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
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
