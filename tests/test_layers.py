"""Layers of the package: a folder imports only from folders below it, and there are few folders.

    generate, harness, hub, api, cli, run
    commands
    training, artifact
    quantization, live
    objective, optim, evaluation, study
    model, data, schedules, loggers
    utils

Imports under `if TYPE_CHECKING` count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jepa_lm

LAYERS = (
    {"utils"},
    {"model", "data", "schedules", "loggers"},
    {"objective", "optim", "evaluation", "study"},
    {"quantization", "live"},
    {"training", "artifact"},
    {"commands"},
    {"run"},
    {"cli"},
    {"api"},
    {"generate", "harness", "hub"},
)
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}
ONLY = {"study": {"utils", "loggers"}, "live": {"utils", "study"}}
"""Folders that read records of runs and know nothing of models."""
MOST_ROOMS = 23
PACKAGE = Path(jepa_lm.__file__).parent


def faults(package: Path) -> list[str]:
    """Return what breaks the order of the layers below a folder `jepa_lm`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        below = path.relative_to(package)
        if below == Path("__init__.py"):
            continue
        here = below.with_suffix("").parts[0]
        if here not in HEIGHT:
            found.append(f"{below}: no such room")
            continue
        for module in _imported(ast.parse(path.read_text(encoding="utf-8"))):
            there = module.split(".")[1] if module.startswith("jepa_lm.") else module
            if there == "jepa_lm" or there == here:  # the package itself only leads to `api`
                continue
            if HEIGHT.get(there, 99) >= HEIGHT[here]:
                found.append(f"{below} imports {module}, which is not below it")
            elif there not in ONLY.get(here, {there}):
                found.append(f"{below} imports {module}, which {here} does not know")
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield dotted names of this package's modules that a module imports; relative ones as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{'.' * node.level}{node.module or ''}"
        elif isinstance(node, ast.ImportFrom) and node.module == "jepa_lm":
            yield from (f"jepa_lm.{alias.name}" for alias in node.names if alias.name in HEIGHT)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module] if f"{node.module}.".startswith("jepa_lm.") else []
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name for name in names if f"{name}.".startswith("jepa_lm."))


def test_rooms_import_only_from_rooms_below_them():
    assert faults(PACKAGE) == []


def test_there_are_few_rooms():
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")} - {Path()}
    modules = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(folders) + len(modules) <= MOST_ROOMS


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("model/a.py", "from jepa_lm.training.module import LanguageModelTask"),
        ("model/a.py", "from jepa_lm import training"),
        ("model/a.py", "import jepa_lm.training.module"),
        ("model/a.py", "import jepa_lm.training.module as task"),
        ("model/a.py", "import os, jepa_lm.cli"),
        ("model/a.py", "from ..training import module"),
        ("model/a.py", "from . import layers"),
        ("model/a.py", "from jepa_lm.data.stream import Batch"),
        ("model/a.py", "from jepa_lm.nowhere import x"),
        ("model/a.py", "def late():\n    from jepa_lm.commands.train import train"),
        ("model/a.py", "if TYPE_CHECKING:\n    from jepa_lm.optim.muon import Muon"),
        ("model/deeper/a.py", "from jepa_lm.objective import LatentPrediction"),
        ("attic/a.py", ""),
        ("loose.py", ""),
        ("study/a.py", "from jepa_lm.data.stream import Batch"),
        ("study/a.py", "from jepa_lm import model"),
        ("live/a.py", "from jepa_lm.objective import LatentPrediction"),
        ("run.py", "from jepa_lm.cli import launch"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, place, source):
    path = tmp_path / "jepa_lm" / place
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert len(faults(tmp_path / "jepa_lm")) == 1


def test_what_is_allowed_is_no_fault(tmp_path):
    path = tmp_path / "jepa_lm" / "study" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import jepa_lm\nfrom jepa_lm import __version__\nfrom jepa_lm.utils.files import read_json\n"
        "from jepa_lm.loggers import settings\nfrom jepa_lm.study import plan\nimport jepa_lmx.model\n"
    )
    assert faults(tmp_path / "jepa_lm") == []
