"""Lists that a new objective or regularizer has to join; what a list lacks is named by file."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import jepa_lm
from jepa_lm.objective.regularizers import Regularizer
from jepa_lm.study.dashboard import LINES
from jepa_lm.study.diagnostics import DIAGNOSTICS
from jepa_lm.utils.nested import at
from jepa_lm.utils.paths import CONF, objectives, options
from tests.conftest import REPO
from tests.objective.statistics_worker import CASES

NAMED_IN = ("README.md", "docs/settings.md", "docs/studies.md")
"""Documents that name every objective, but not its variants and the recipes."""


def regularizers(node: Any) -> Iterator[str]:
    """Yield the names of regularizers in an objective's YAML."""
    if isinstance(node, dict):
        yield from node.get("regularizers") or ()
        for value in node.values():
            yield from regularizers(value)


def missing(folder: Path) -> list[str]:
    """Return what lacks the objectives, regularizers and recipes of a config group `objective`."""
    sweep = yaml.safe_load((CONF / "sweep" / "objectives.yaml").read_text())
    swept = at(sweep, "hydra", "sweeper", "params", "objective").split(",")
    found = []
    for name in objectives(folder):
        text = (folder / f"{name}.yaml").read_text()
        # A target from a file or from the data needs more than its name.
        alone = "Frozen" not in text and "BatchTarget" not in text
        places = {"conf/sweep/objectives.yaml": name in swept or not alone}
        places |= {f"docs/objectives/{name}.svg": (REPO / f"docs/objectives/{name}.svg").is_file()}
        places |= {file: name in (REPO / file).read_text() for file in NAMED_IN}
        found += [f"{place} lacks {name}" for place, has in places.items() if not has]
    about = (REPO / "docs" / "objectives.md").read_text()
    drawn = {metric for plots in LINES.values() for metrics in plots.values() for metric in metrics}
    for path in sorted(folder.rglob("*.yaml")):
        if path.stem not in ("base", "none") and f"{path.stem}`" not in about:
            found.append(f"docs/objectives.md lacks {path.stem}")
        for name in regularizers(yaml.safe_load(path.read_text())):
            if f"jepa/{name}" not in drawn:
                found.append(f"jepa_lm/study/dashboard.py lacks jepa/{name}")
    return found


def test_every_objective_is_in_every_list():
    assert missing(CONF / "objective") == []


def test_what_predicts_something_else_has_a_figure():
    """Variants in other sizes or with one part less need none of their own."""
    shown = re.findall(
        r"^!\[(\w+)\]\(objectives/\1\.svg\)$",
        (REPO / "docs" / "objectives.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    alike = {"vicreg_published", "lewm_byte", "chunk_loss_only"}
    assert set(shown) == set(options("objective")) - alike - {"none"}
    drawn = {path.stem for path in (REPO / "docs" / "objectives").glob("*.svg")}
    assert sorted(drawn) == sorted(shown)


def test_a_planted_objective_is_missed_everywhere(tmp_path):
    shutil.copytree(CONF / "objective", tmp_path / "objective")
    (tmp_path / "objective" / "byol.yaml").write_text("regularizers: {spread: {weight: 1.0}}\n")
    assert missing(tmp_path / "objective") == [
        "conf/sweep/objectives.yaml lacks byol",
        "docs/objectives/byol.svg lacks byol",
        "README.md lacks byol",
        "docs/settings.md lacks byol",
        "docs/studies.md lacks byol",
        "docs/objectives.md lacks byol",
        "jepa_lm/study/dashboard.py lacks jepa/spread",
    ]
    (tmp_path / "objective" / "byol.yaml").rename(tmp_path / "objective" / "lewm_spread.yaml")
    assert missing(tmp_path / "objective") == [  # a variant of lewm
        "docs/objectives.md lacks lewm_spread",
        "jepa_lm/study/dashboard.py lacks jepa/spread",
    ]


def test_every_regularizer_is_compared_over_ranks():
    """`tests/objective/statistics_worker.py` has a case of each."""
    ours = {kind for kind in Regularizer.__subclasses__() if kind.__module__.startswith("jepa_lm")}
    assert ours
    assert ours <= {type(make()) for make in CASES.values()}


def test_every_diagnostic_of_a_report_is_measured(logged):
    assert set(DIAGNOSTICS) <= set(logged.summary["jepa"])
    columns = {key for row in logged.run.history for key in row}
    assert {f"jepa/{key}" for key, shown in DIAGNOSTICS.items() if shown.says} <= columns


def test_nothing_imports_the_dashboard():
    """Its command alone loads it, and with it an extra."""
    package = Path(jepa_lm.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            module = getattr(node, "module", None) or ""
            assert not any("dashboard" in name for name in (module, *names)), path
