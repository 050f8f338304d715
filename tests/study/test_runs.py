"""Finding run folders, half-written ones included."""

from __future__ import annotations

from jepa_lm.study.runs import Run, find_runs
from tests.study.sweeps import write_run


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
