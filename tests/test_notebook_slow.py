"""The notebook in examples/ runs from top to bottom in a folder of its own, and says what it needs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO
from tests.test_packaging import WANTED

NOTEBOOK = REPO / "examples" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
PROGRAM = "\n\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "code")
SHOW = """
import matplotlib.pyplot as plt

def show():
    figure = plt.gcf()
    figure.canvas.draw()
    print("drawn", sum(len(a.patches) for a in figure.axes), sum(len(a.images) for a in figure.axes))
    plt.close(figure)

plt.show = show

"""
"""Does what a notebook does with a figure, and prints how many bars and images it has."""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    (tmp_path / "tour.py").write_text(SHOW + PROGRAM)
    result = subprocess.run(
        [sys.executable, "tour.py"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert " finished " in result.stdout
    assert len(list((tmp_path / "logs").rglob("summary.json"))) == 1
    lines = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("drawn ")]
    (bars, none), (_, images) = [[int(n) for n in line] for line in lines]
    assert bars > 10
    assert none == 0
    assert images == 1


def test_the_notebook_names_what_is_not_installed_with_the_package():
    imports = [node for node in ast.walk(ast.parse(PROGRAM)) if isinstance(node, ast.Import)]
    packages = {name.name.split(".")[0] for node in imports for name in node.names}
    more = packages - {"jepa_lm", *WANTED}
    assert more == {"matplotlib"}
    for text in ("".join(CELLS[0]["source"]), (REPO / "docs" / "python.md").read_text()):
        assert f"`pip install {' '.join(more)}`" in text


def test_the_notebook_is_committed_without_outputs():
    assert not any(c.get("outputs") or c.get("execution_count") for c in CELLS)
