"""What the page is told of runs: their rows and their curves."""

from __future__ import annotations

import json
import os
import time

import pytest

from jepa_lm.live import watched
from jepa_lm.live.files import Shelf
from jepa_lm.live.watched import Watch
from tests.study.sweeps import write_run


@pytest.fixture(autouse=True)
def searches_every_time(monkeypatch):
    monkeypatch.setattr(watched, "SEARCHED_EVERY", -1.0)


def rows(watch: Watch) -> dict[str, dict]:
    return {row["run"]: row for row in watch.runs()["runs"]}


def test_a_row_for_each_run(tmp_path):
    write_run(tmp_path / "a/done", 1.7, seed="3", weight=0.1)
    write_run(tmp_path / "a/running", None, objective="lewm")
    silent = write_run(tmp_path / "silent", None)
    for path in silent.rglob("*"):
        os.utime(path, (time.time() - 4000,) * 2)
    failed = write_run(tmp_path / "failed", None)
    (failed / "summary.json").write_text('{"status": "failed", "error": "disk full"}')
    found = rows(Watch(Shelf(tmp_path)))
    assert {name: row["status"] for name, row in found.items()} == {
        "a/done": "finished",
        "a/running": "running",
        "silent": "unfinished",
        "failed": "failed",
    }
    done, running = found["a/done"], found["a/running"]
    assert (done["step"], done["score"], done["speed"], done["seed"]) == (400, 1.7, 8192.0, 3)
    assert (done["objective"], done["weight"]) == ("vicreg", 0.1)
    assert (running["step"], running["of"], running["score"]) == (400, 400, 1.75)
    assert found["failed"]["error"] == "disk full"
    assert 3900 < found["silent"]["age"] < 4100


def test_runs_are_shown_by_what_they_are_judged_by(tmp_path):
    write_run(tmp_path / "text", 1.7)
    val = {"bpb": None, "bytes": 0, "nll": 1.25, "solved": 0.5}
    write_run(tmp_path / "rows", 1.7, summary={"val": val})
    write_run(tmp_path / "task", 1.7, summary={"val": val}, config={"metric": "val/solved"})
    for name, metric in (("nats", None), ("share", "val/solved")):
        running = write_run(tmp_path / name, None, config={"metric": metric})
        (running / "metrics.csv").write_text("step,train/ce,val/nll,val/solved\n9,2.5,1.5,0.25\n")
    told = {
        name: (row["score"], row["unit"], row["metric"])
        for name, row in rows(Watch(Shelf(tmp_path))).items()
    }
    assert told == {
        "text": (1.7, "BPB", "val/bpb"),
        "rows": (1.25, "nats", "val/nll"),
        "task": (0.5, "solved share", "val/solved"),
        "nats": (1.5, "nats", "val/nll"),
        "share": (0.25, "solved share", "val/solved"),
    }


def test_the_latest_comes_first_and_reports_are_named(tmp_path):
    for age, name in ((50, "s/0"), (10, "s/1"), (30, "b")):
        for path in write_run(tmp_path / name, 1.7).rglob("*"):
            os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "s" / "report.html").write_text("<p>")
    told = Watch(Shelf(tmp_path)).runs()
    assert [row["run"] for row in told["runs"]] == ["s/1", "b", "s/0"]
    assert told["reports"] == [{"path": "s/report.html", "name": "s/report.html"}]


def test_a_resumed_run_is_running_again(tmp_path):
    folder = write_run(tmp_path / "r", 1.7)
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 50,) * 2)
    watch = Watch(Shelf(tmp_path))
    assert rows(watch)["r"]["status"] == "finished"
    os.utime(folder / "config.json")
    row = rows(watch)["r"]
    assert (row["status"], row["score"]) == ("running", 1.7)
    (folder / "summary.json").write_text(json.dumps({"status": "interrupted", "steps": 500}))
    assert (rows(watch)["r"]["status"], rows(watch)["r"]["step"]) == ("interrupted", 500)


def test_a_row_follows_its_files(tmp_path):
    folder, watch = write_run(tmp_path / "r", None), Watch(Shelf(tmp_path))
    assert rows(watch)["r"]["step"] == 400
    with open(folder / "metrics.csv", "a") as file:
        header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
        cells = {"step": "499", "val/bpb": "1.5"}
        file.write(",".join(cells.get(name, "") for name in header) + "\n")
    assert (rows(watch)["r"]["step"], rows(watch)["r"]["score"]) == (500, 1.5)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert rows(watch) == {}


def test_damaged_records_are_no_error(tmp_path):
    folder = write_run(tmp_path / "r", 1.7)
    (folder / "summary.json").write_text('{"status": "fin')
    (folder / "config.json").write_text("[]")
    (folder / "metrics.csv").write_bytes(bytes(range(256)) * 10)
    watch = Watch(Shelf(tmp_path))
    assert rows(watch)["r"]["status"] == "damaged"
    assert watch.curves(["r"], "val/bpb", "step")["curves"] == [{"run": "r", "x": [], "y": []}]


def test_curves_over_steps_tokens_and_seconds(tmp_path):
    folder = write_run(tmp_path / "r", None)
    (folder / "metrics.csv").write_text(
        "step,train/bpb,train/seconds,val/bpb\n9,3.0,2.0,\n19,2.5,4.0,\n14,,,2.75\n19,,,2.5\n24,,,2.25\n"
    )
    watch = Watch(Shelf(tmp_path))
    watch.runs()

    def curve(metric: str, axis: str) -> tuple[list[float], list[float]]:
        told = watch.curves(["r", "nowhere", "../r"], metric, axis)
        assert told["metrics"] == ["train/bpb", "train/seconds", "val/bpb"]
        (only,) = told["curves"]
        return only["x"], only["y"]

    assert curve("train/bpb", "step") == ([10, 20], [3.0, 2.5])
    assert curve("train/bpb", "tokens") == ([20480, 40960], [3.0, 2.5])
    assert curve("train/bpb", "seconds") == ([2.0, 4.0], [3.0, 2.5])
    assert curve("val/bpb", "seconds") == ([3.0, 4.0, 5.0], [2.75, 2.5, 2.25])
    assert curve("jepa/r2", "step") == ([], [])


def test_records_that_lead_out_are_not_read(tmp_path):
    outside = write_run(tmp_path / "outside", 1.2)
    folder = write_run(tmp_path / "logs" / "r", 1.7)
    (folder / "summary.json").unlink()
    (folder / "summary.json").symlink_to(outside / "summary.json")
    write_run(tmp_path / "logs" / "honest", 1.7)
    (tmp_path / "logs" / "link").symlink_to(outside)
    assert list(rows(Watch(Shelf(tmp_path / "logs")))) == ["honest"]


def test_the_folder_may_be_a_run_itself(tmp_path):
    write_run(tmp_path / "r", 1.7)
    watch = Watch(Shelf(tmp_path / "r"))
    (row,) = watch.runs()["runs"]
    assert (row["run"], row["folder"], row["status"]) == ("", "r", "finished")
    assert len(watch.curves([""], "train/bpb", "step")["curves"][0]["x"]) == 20


def test_settings_that_are_not_resolved_are_left_out(tmp_path):
    folder = write_run(tmp_path / "r", None)
    (folder / "config.json").unlink()
    (folder / "summary.json").write_text('{"status": "failed"}')
    (folder / ".hydra" / "config.yaml").write_text(
        "seed: ${oc.env:X}\njepa: {weight: [1]}\ntrainer: {max_steps: '${x}'}\ndata: {batch_tokens: a}\n"
    )
    (folder / "metrics.csv").write_text("step,val/bpb\n9,2.0\n")
    watch = Watch(Shelf(tmp_path))
    row = rows(watch)["r"]
    assert (row["seed"], row["weight"], row["of"], row["status"]) == (None, None, None, "failed")
    assert watch.curves(["r"], "val/bpb", "step")["curves"][0]["y"] == [2.0]
    assert watch.curves(["r"], "val/bpb", "tokens")["curves"] == [{"run": "r", "x": [], "y": []}]


def test_few_runs_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(watched, "MOST_FOLLOWED", 2)
    for i in range(4):
        write_run(tmp_path / f"{i}", None)
    watch = Watch(Shelf(tmp_path))
    assert all(row["step"] == 400 for row in rows(watch).values())
    assert len(watch._followed) == 2
