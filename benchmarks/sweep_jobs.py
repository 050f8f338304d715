"""Overhead of a sweep over its jobs: planning, composing, checks, records, the report.

A runs `train(cfg)` for every job, B the sweep through the command's own function, both in this process. They
train the four weights and three seeds of `sweep=jepa_weight` with debug=tiny.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator
from unittest import mock

from benchmarks.measure import Claim, at_most, interleaved
from benchmarks.models import compose
from jepa_lm import cli
from jepa_lm.run import train

WORDS = ("objective=patch", "debug=tiny", "sample=false")
JOBS = tuple(itertools.product((0, 0.05, 0.1, 0.15), (1, 2, 3)))
"""Weight and seed of each job."""
ROUNDS = 3


def bare() -> None:
    """Run every job without a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        for weight, seed in JOBS:
            run_dir = f"paths.run_dir={folder}/{weight}/{seed}"
            train(compose(*WORDS, f"jepa.weight={weight}", f"seed={seed}", run_dir))


def swept() -> None:
    """Run the sweep."""
    with tempfile.TemporaryDirectory() as folder:
        words = (*WORDS, "sweep=jepa_weight", f"hydra.sweep.dir={folder}")
        with mock.patch.object(sys, "argv", ["train.py", *words]):
            assert cli.launch("train") == 0


def claims() -> Iterator[Claim]:
    """Yield the claim."""
    with contextlib.redirect_stdout(sys.stderr):
        timings = interleaved(bare, rounds=ROUNDS, swept=swept)
    yield at_most(
        "sweep_jobs/time",
        timings.median("swept") / timings.reference,
        unit="times the bare training",
        target=1.2,
        limit=1.0,
        spread=timings.spread,
        details={"bare_seconds_per_job": timings.reference / len(JOBS), "jobs": len(JOBS)},
    )
