"""The README's reading list of the core: its files, names and line counts, and that it stays short."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPO

ROW = re.compile(r"^\| `(\S+\.py)` \| (.+?) \| (\d+) \|$", re.MULTILINE)
ROWS = ROW.findall((REPO / "README.md").read_text(encoding="utf-8"))
LONGEST = 3150
OFF = 0.1
"""Share by which a count may be off before it has to be written anew."""


def lines_of(file: str, read: str) -> int:
    """Return the lines of a file, or of the definitions named with backticks."""
    source = (REPO / "jepa_lm" / file).read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", read))
    if not named:
        return len(source.splitlines())
    found = {d.name: d for d in ast.parse(source).body if hasattr(d, "name")}
    assert named <= found.keys(), f"{file} does not define {named - found.keys()}"
    return sum(found[name].end_lineno - found[name].lineno + 1 for name in named)


@pytest.mark.parametrize(("file", "read", "lines"), ROWS)
def test_counts_are_those_of_the_files(file, read, lines):
    assert lines_of(file, read) == pytest.approx(int(lines), rel=OFF, abs=5)


def test_the_core_can_be_read_in_an_hour():
    assert len(ROWS) > 20
    assert sum(lines_of(file, read) for file, read, _ in ROWS) <= LONGEST
