"""A fixed sample of `make fuzz`: every mutant is refused in one clear line, or read correctly."""

from __future__ import annotations

import json

import pytest

from tests.fuzz.frame import READERS
from tests.fuzz.material import Material
from tests.processes import run

pytestmark = pytest.mark.slow
SAMPLE = 1000


@pytest.fixture(scope="module")
def material(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    (folder / "run").symlink_to(trained.folder)
    _ = Material(folder).export
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_a_sample_of_mutants_does_nothing_wrong(reader, material):
    each = SAMPLE // len(READERS)
    found = json.loads(run("tests.fuzz", reader, "0", str(each), str(material)))
    assert found["wrong"] == []
    assert sum(found["ends"].values()) == each
    # Every reader meets both sound and unsound files.
    assert {end.split()[-1] for end in found["ends"]} == {"read", "refused"}
