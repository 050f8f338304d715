"""Finding run folders, half-written ones included."""

from __future__ import annotations

import math

import pytest

from jepa_lm.study.arm_result import arm_of, seed_order
from jepa_lm.study.manifest import load
from jepa_lm.study.measure import Measure
from jepa_lm.study.recorded import MisfitError, read
from jepa_lm.study.runs import Run, as_score, find_runs
from tests.study.sweeps import study, write_run


def test_a_half_written_row_is_left_out(tmp_path):
    lines = ["epoch,jepa/loss,step,train/bpb", ",0.5,19,2.5", ",0.25,39,nan", ",0.1"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    run = Run(tmp_path)
    assert run.series("jepa/loss") == [(19, 0.5), (39, 0.25)]
    assert run.series("train/bpb") == [(19, 2.5)]
    assert run.series("train/nll") == []


def test_more_cells_than_columns(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/bpb\n19,2.5,7,8\n")
    assert Run(tmp_path).series("train/bpb") == [(19, 2.5)]


def test_scores_are_numbers_that_a_metric_can_be_and_seeds_are_in_the_order_of_numbers():
    taken = [as_score(value) for value in (0, 1.7, 1e6, 1.1e6, -0.1, True, "1", None, float("nan"))]
    assert taken == [0, 1.7, 1e6, *[None] * 6]
    assert sorted(["10", "x", "2", "-3"], key=seed_order) == ["-3", "2", "10", "x"]


@pytest.mark.parametrize("number", [2e15, -2e15, math.nan, -math.inf, True])
def test_a_number_out_of_bounds_is_none(number):
    with pytest.raises(MisfitError):
        read(float, number, "x", [])
    assert read(float, -1e15, "x", []) == -1e15


def test_the_runs_of_an_arm_are_in_the_order_of_their_seeds(tmp_path):
    study(tmp_path, {"arm": {str(seed): 1.7 for seed in (10, 9, 2)}})
    (group,) = load(tmp_path).groups
    assert list(arm_of(tmp_path, group, Measure()).runs) == ["2", "9", "10"]


def test_runs_are_found_by_either_record(tmp_path):
    write_run(tmp_path / "b" / "0", 1.7)
    write_run(tmp_path / "b" / "1", None)
    write_run(tmp_path / "a", 1.8)
    (tmp_path / "a" / "config.json").unlink()
    (tmp_path / "c").mkdir()
    found = list(find_runs(tmp_path))
    assert [str(run.folder.relative_to(tmp_path)) for run in found] == ["a", "b/0", "b/1"]
    assert [run.status for run in found] == ["finished", "finished", "unfinished"]
    assert [run.finished for run in found] == [True, True, False]
