"""The committed table of every number in the presets of published systems, by dotted key.

`python -m tests.preset_table` writes it anew, for a change of a preset that is meant; check its diff against
the publication.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jepa_lm.utils.config import resolve
from jepa_lm.utils.nested import flat
from jepa_lm.utils.paths import CONF
from tests.conftest import REPO

FILE = REPO / "tests/vectors/presets.json"
PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("pr*.yaml"))
NODES = (
    "data", "model", "jepa", "tokens", "optimizer", "quantization", "average", "guard", "trainer",
    "ce_weight", "z_loss_weight", "temperature", "eval",
)  # fmt: skip
"""Nodes that decide what a run computes and how it is scored."""
OF_THE_MACHINE = {"data.cache_dir", "trainer.default_root_dir"}


def numbers(compose: Callable[..., Any], preset: str) -> dict[str, Any]:
    """Return the settings of a preset by dotted key; `compose` takes overrides."""
    config = resolve(compose(f"experiment={preset}", "paths.run_dir=unused"))
    found = flat({node: config[node] for node in NODES})
    return {key: value for key, value in found.items() if key not in OF_THE_MACHINE}


if __name__ == "__main__":
    from benchmarks.models import compose

    table = {preset: numbers(compose, preset) for preset in PRESETS}
    FILE.write_text(json.dumps(table, indent=0, sort_keys=True) + "\n", encoding="utf-8")
