"""A whole study at three sizes by the real command: 18 runs, and their trend."""

from __future__ import annotations

import json
import math

import pytest

from jepa_lm.study import manifest
from jepa_lm.study.results import collect
from jepa_lm.study.runs import Run
from tests.conftest import SMALL
from tests.processes import run, start
from tests.study.conftest import WITHOUT_OTHERS
from tests.study.pages import read

pytestmark = pytest.mark.slow
OF_THE_RUNGS = ("model.dim", "trainer.max_steps")
LADDER = {"tiny": (64, 4), "small": (80, 6), "medium": (96, 8), "large": None}


def test_a_study_at_three_sizes_ends_with_its_trend(tmp_path, small_text):
    sizes = [word for word in SMALL if not word.startswith(OF_THE_RUNGS)]
    rungs = {
        name: None if of is None else [f"model.dim={of[0]}", f"trainer.max_steps={of[1]}"]
        for name, of in LADDER.items()
    }
    words = (
        "study=scaling",
        "objective=lse_mtp",
        "seed=1,2,3",
        *sizes,
        *(f"study.ladder.{name}={json.dumps(given)}" for name, given in rungs.items()),
        *WITHOUT_OTHERS,
        "study.arms.weight_0=null",
        f"data.path={small_text}",
        f"hydra.sweep.dir={tmp_path}",
    )
    code, (_, told) = (process := start("train.py", *words)).wait(), process.communicate()
    assert code == 0, told
    (trend,) = collect(tmp_path).trends
    assert (trend.apart, trend.slope.n, len(trend.points)) == ((), 3, 3)
    assert f"({trend.word}): {trend.sentence}" in told
    plan = manifest.load(tmp_path)
    for rung in plan.ladder:  # planned as the runs counted it
        baseline = Run(tmp_path / f"rung-{rung.name}/none/seed-1")
        flops = sum(baseline.summary["flops_per_token"].values()) * baseline.summary["tokens"]
        assert rung.log_flops[f"rung-{rung.name}/none"] == pytest.approx(
            math.log10(flops), abs=1e-6
        )
    report = (tmp_path / "report.html").read_text()
    assert trend.sentence in read(report).text.replace("\N{NO-BREAK SPACE}", " ")
    dry = run("train.py", *words, "study.dry_run=true")
    assert "18 runs, 18 of them already finished\ntime: none, all runs are finished" in dry
