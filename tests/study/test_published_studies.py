"""The studies that README publishes: their packed records are here, and say what it says."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest

from jepa_lm.study import packing, tables
from jepa_lm.study.results import collect
from tests.conftest import REPO

PACKED = sorted((REPO / "docs/studies").glob("*.zip"))
PLACE = re.compile(r"""["' =]/(?!\*)\w|\b[A-Z]:\\\\""")
"""A path from a root, as JSON, CSV and YAML write it."""


@pytest.fixture(scope="module", params=PACKED, ids=lambda path: path.stem)
def results(request, tmp_path_factory):
    there = shutil.copy(request.param, tmp_path_factory.mktemp("packed"))
    return collect(packing.unpack(Path(there)))


@pytest.fixture(scope="module")
def rows():
    """Rows of README's tables, as cells."""
    lines = (REPO / "README.md").read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if "|" in line
    ]


def test_they_are_here():
    assert [path.stem for path in PACKED] == ["known_yes", "second_study"]


@pytest.mark.parametrize("path", PACKED, ids=lambda path: path.stem)
def test_no_record_names_a_place_of_a_machine(path):
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            text = archive.read(name).decode()
            assert not (found := PLACE.search(text)), (name, text[found.start() :][:80])


def test_every_run_is_finished_and_nothing_is_wrong_with_them(results):
    assert len(results.finished) == len(results.runs)
    assert not results.failures
    assert not results.apart
    assert [treatment.apart for treatment in results.treatments] == [()] * len(results.treatments)


def test_readme_says_what_the_records_say(results, rows):
    """Words, differences and intervals, at the best and at the budget."""
    for treatment in results.treatments:
        (objective,) = {run.objective for run in treatment.arm.runs.values()}
        assert [objective, treatment.word] in [row[:2] for row in rows]
        compared = [row for row in tables.estimands(results).rows if row[0] == treatment.arm.name]
        assert compared
        for _, control, at_budget, budget_interval, at_best, best_interval in compared:
            best, budget = f"{at_best} {best_interval}", f"{at_budget} {budget_interval}"
            assert [objective, control.rpartition("/")[2], best, budget] in rows


def test_what_their_placebos_did_not_record_is_told(results):
    """Their runs are older than the record of how many rows got a target of their own document."""
    placebos = [name for name in results.arms if name.rpartition("/")[2] == "placebo"]
    (said,) = (text for text in results.warnings if "did not record how many" in text)
    assert placebos
    assert all(f"{name} (seed" in said for name in placebos)
