"""The quick form of the calibration: a law that helps and its placebo, trained and judged."""

from __future__ import annotations

import pytest

from jepa_lm.study.calibrate import KNOWN, STUDIES, outcome
from jepa_lm.study.results import collect
from tests.processes import run

pytestmark = pytest.mark.slow
SMALLER = (
    "model.dim=32",
    "model.backbone.rope_dims=8",
    "trainer.max_steps=200",
    "optimizer.groups.embeddings.lr=0.006",
    "data.corpus.train_rows=128",
    "data.corpus.val_rows=256",
    "data.batch_tokens=1024",
    "trainer=cpu",
    "logger=csv",
)


def test_the_law_helps_and_its_placebo_does_not(tmp_path):
    words = (*STUDIES["law"], *SMALLER, "seed=1,2,3", f"hydra.sweep.dir={tmp_path}")
    run("train.py", *words)
    results = collect(tmp_path)
    found = {k.name: outcome(k, results) for k in KNOWN if k.study == "law"}
    assert found["law of the state"].word == "helps", found
    assert found["placebo of the law"].right, found
    floors = {r.summary["val"]["floor"] for r in results.finished}
    assert len(floors) == 1  # every arm is validated on the same rows
