"""What is counted for a config that was not traced, against the traces."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.training.estimate import CARDS, count, table
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve

pytestmark = pytest.mark.slow
PRESETS = [name for name in table() if not name.endswith("_layers")]


@pytest.mark.parametrize("preset", PRESETS)
def test_counted_figures_are_near_the_traced_ones(compose, monkeypatch, preset):
    """The errors that the docstring of `count` states; floating-point work is counted almost exactly."""
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda tensor, *args, **settings: tensor)
    task = LanguageModelTask(resolve(compose("train", f"experiment={preset}")))
    found, row = count(task), table()[preset]
    assert found["saved_gb"] == pytest.approx(row["saved_gb"], rel=0.16)
    assert found["traffic_gb"] == pytest.approx(row["traffic_gb"], rel=0.23)
    for key in ("product_tflop", "attention_tflop"):
        assert found[key] == pytest.approx(row[key], rel=0.03)
    for card in CARDS.values():
        assert card.milliseconds(found) == pytest.approx(card.milliseconds(row), rel=0.1)
