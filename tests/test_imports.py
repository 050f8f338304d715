"""Nothing heavy is imported before it is needed: a command answers, and a page is written, at once.

One new process makes the imports one after the other, from the lightest to the heaviest.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO

CLAIMS = {
    "a run's page": (
        "import jepa_lm.live.run_page",
        ("matplotlib", "scipy", "torch"),
    ),
    "the runner on a GPU": (
        "import benchmarks.__main__, benchmarks.gpu.kit",
        ("torch",),
    ),
    "a composed config": (
        "import jepa_lm; jepa_lm.UserError; jepa_lm.compose(['objective=vicreg'])",
        ("torch", "lightning"),
    ),
    "the page of settings": (
        "from docs.settings_page import PAGE, page; page(PAGE.read_text('utf-8'))",
        ("torch",),
    ),
    "the hub": (
        "import jepa_lm.hub, jepa_lm.artifact.hub_push, jepa_lm.artifact.hub_repo",
        ("huggingface_hub",),
    ),
    "a model without triton": (
        "import jepa_lm.model.mamba2",
        ("triton.language",),
    ),
    "scoring and exporting": (
        "import jepa_lm.commands.export, jepa_lm.artifact.round_trip, jepa_lm.commands.evaluate",
        ("lightning", "torch._dynamo"),  # most of a start; an export's fresh process counts, too
    ),
}
"""What is imported, and what may not be afterwards."""
PROGRAM = """
import json, sys
sys.modules["triton"] = None  # as where it is not installed
found = {}
for name, (statement, absent) in json.load(sys.stdin).items():
    exec(statement)
    found[name] = [module for module in absent if module in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def too_early() -> dict[str, list[str]]:
    """Modules that were imported before they were needed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(CLAIMS),
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CLAIMS)
def test_nothing_heavy_is_imported_before_it_is_needed(too_early, name):
    assert too_early[name] == []
