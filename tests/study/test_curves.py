"""Curves: means over seeds and differences, of what the runs recorded at equal steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import stats

from jepa_lm.study.curves import Metric, difference, over_seeds, score_metric
from jepa_lm.study.measure import Measure
from jepa_lm.study.runs import Run
from tests.study.sweeps import write_run


def runs_of(folder: Path, scores: dict[str, float], **more) -> dict[str, Run]:
    return {s: Run(write_run(folder / s, bpb, seed=s, **more)) for s, bpb in scores.items()}


def test_a_curve_is_the_mean_between_the_lowest_and_the_highest_seed(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7, "2": 1.8, "3": 1.6}, every=10)
    metric = score_metric(list(runs.values()), Measure())
    assert (metric.column, metric.window) == ("train/bpb", 2)
    curve = over_seeds(runs, metric)
    values = np.array([[v for _, v in run.series("train/bpb")] for run in runs.values()])
    smooth = (values[:, 1:] + values[:, :-1]) / 2
    assert curve.steps == tuple(range(19, 400, 10))
    np.testing.assert_allclose(curve.runs, smooth)
    np.testing.assert_allclose(curve.mean, smooth.mean(0))
    np.testing.assert_allclose(curve.low, smooth.min(0))
    np.testing.assert_allclose(curve.high, smooth.max(0))


def test_differences_are_taken_seed_by_seed(tmp_path):
    control = runs_of(tmp_path / "c", {"1": 1.7, "2": 1.8, "3": 1.9, "4": 2.0})
    treatment = runs_of(tmp_path / "t", {"1": 1.6, "2": 1.78, "3": 1.83})
    curve = difference(treatment, control, Metric("train/bpb", "", 1))
    low, high = stats.t.interval(
        0.95, 2, np.mean([-0.1, -0.02, -0.07]), stats.sem([-0.1, -0.02, -0.07])
    )
    assert len(curve.runs) == 3
    np.testing.assert_allclose(curve.mean, np.mean([-0.1, -0.02, -0.07]))
    np.testing.assert_allclose(curve.low, low)
    np.testing.assert_allclose(curve.high, high)


def test_scores_on_the_way_are_those_of_validation_where_there_are_some(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7, "2": 1.8})
    assert score_metric(list(runs.values()), Measure()).column == "train/bpb"
    for run in runs.values():
        lines = ["step,val/bpb", "99,2.0", "199,1.9", "299,1.8", "399,1.7"]
        (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    again = {seed: Run(run.folder) for seed, run in runs.items()}
    metric = score_metric(list(again.values()), Measure())
    assert (metric.column, metric.window) == ("val/bpb", 1)
    assert over_seeds(again, metric).steps == (99, 199, 299, 399)


def test_only_steps_that_all_seeds_have(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7, "2": 1.8})
    lines = (runs["2"].folder / "metrics.csv").read_text().splitlines()
    (runs["2"].folder / "metrics.csv").write_text("\n".join(lines[:8]) + "\n")
    curve = over_seeds({s: Run(r.folder) for s, r in runs.items()}, Metric("train/bpb", ""))
    assert max(curve.steps) < 200


def test_long_runs_are_thinned_and_keep_their_end(tmp_path):
    runs = runs_of(tmp_path, {"1": 1.7}, every=1)
    curve = over_seeds(runs, Metric("train/bpb", ""))
    assert len(curve.steps) == 200
    assert curve.steps[-1] == 399
