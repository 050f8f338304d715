"""The quick form of the calibration: a law that helps and its placebo, trained and judged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jepa_lm.study.calibrate import KNOWN, STUDIES, outcome
from jepa_lm.study.results import collect
from tests.conftest import REPO

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
    done = subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = collect(tmp_path)
    found = {k.name: outcome(k, results) for k in KNOWN if k.study == "law"}
    assert found["law of the state"].word == "helps", found
    assert found["placebo of the law"].right, found
    floors = {run.summary["val"]["floor"] for run in results.finished}
    assert len(floors) == 1  # every arm is validated on the same rows
