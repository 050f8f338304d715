"""A message names a command as its reader types it: `train.py` in a checkout, else `jepa-train`."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPO

SCRIPT = re.compile(r"\b(train|eval|export)\.py\b")
KNOWN = {
    "api.py": "what Hydra's explanations read in place of the command line",
    "utils/going_on.py": "how this process was started",
}
"""Files with such a text, and why."""


def named(source: str) -> list[str]:
    """Return the texts in a program that name a script, but for those that explain something."""
    nodes = list(ast.walk(ast.parse(source)))
    explains = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and id(n) not in explains]
    return [text for text in texts if isinstance(text, str) and SCRIPT.search(text)]


def test_no_message_names_a_script_by_itself():
    package = REPO / "jepa_lm"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if named(path.read_text("utf-8"))
    }
    assert found == KNOWN.keys()


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ('raise UserError(f"{x}: run train.py again")', True),
        ('shell(["python", "train.py"])', True),
        ('"""As train.py does."""', False),
        ('X = 1\n"""What train.py reads."""', False),
        ("# see train.py", False),
    ],
)
def test_a_planted_one_is_seen(line, seen):
    assert bool(named(line)) == seen
