"""`python -m jepa_lm.study`: rebuild a report, list runs, compare two."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jepa_lm.study.__main__ import main
from jepa_lm.study.listing import entries
from jepa_lm.study.runs import Run
from tests.study.sweeps import paired, study, write_run


@pytest.fixture
def wide(monkeypatch):
    """A terminal wide enough that no cell wraps."""
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture
def logs(tmp_path):
    """Three runs: an older one that is listed last by name, a failed one, one that is running."""
    write_run(
        tmp_path / "logs" / "z", 1.7, weight=0.1, summary={"written": "2026-11-20T10:00:00+0000"}
    )
    new = {"written": "2026-11-20T11:30:00+0200", "steps": 1200}  # half an hour before the other
    write_run(
        tmp_path / "logs" / "a" / "0", 1.65, weight=0.2, seed="7", objective="lewm", summary=new
    )
    failed = write_run(tmp_path / "logs" / "[b]", None, weight=0.0, objective="none")
    (failed / "summary.json").write_text('{"status": "failed", "error": "no"}')
    write_run(tmp_path / "logs" / "c", None)
    return tmp_path / "logs"


def test_ls_has_the_newest_last(logs, capsys, wide):
    assert main(["ls", str(logs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "train" in line]
    assert rows[0] == [
        f"{logs}/a/0",
        "train",
        "lewm",
        "0.2",
        "7",
        "1,200",
        "1.6500",
        "BPB",
        "finished",
    ]
    assert rows[1] == [
        f"{logs}/z",
        "train",
        "vicreg",
        "0.1",
        "1",
        "400",
        "1.7000",
        "BPB",
        "finished",
    ]
    assert {row[0]: row[-1] for row in rows[2:]} == {
        f"{logs}/[b]": "failed",
        f"{logs}/c": "unfinished",
    }


def test_ls_as_json(logs, capsys):
    assert main(["ls", str(logs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["folder"] == f"{logs}/a/0"
    assert (found[0]["bpb"], found[0]["weight"], found[0]["steps"]) == (1.65, 0.2, 1200)
    assert {entry["status"] for entry in found} == {"finished", "failed", "unfinished"}


def test_ls_reads_logs_by_default(logs, capsys, monkeypatch, wide):
    monkeypatch.chdir(logs.parent)
    assert main(["ls"]) == 0
    said = capsys.readouterr().out
    assert "runs below logs" in said
    assert "logs/a/0 " in said


def test_ls_of_nothing(tmp_path, capsys):
    assert main(["ls", str(tmp_path)]) == 0
    assert "no runs below" in capsys.readouterr().out


def test_summaries_are_enough(logs):
    for path in logs.rglob("config.json"):
        path.unlink()
    for path in logs.rglob("hydra.yaml"):
        path.unlink()
    first, *_ = entries(logs)
    assert (first.folder, first.bpb, first.seed, first.objective) == (f"{logs}/a/0", 1.65, 7, None)


def test_objective_without_hydras_record(tmp_path):
    folder = write_run(tmp_path, 1.7, objective="recipes/pr1006")
    assert Run(folder).objective == "recipes/pr1006"
    (folder / ".hydra" / "hydra.yaml").write_text("a: [broken")
    assert Run(folder).objective == "LatentPrediction"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "jepa": {"weight": 0.0}}))
    assert Run(folder).objective == "none"


def test_older_runs_have_hydras_config_alone(tmp_path):
    folder = write_run(tmp_path / "run", 1.7, objective="lewm")
    (folder / "config.json").unlink()
    (folder / ".hydra" / "config.yaml").write_text("task_name: demo\njepa:\n  weight: ${w}\n")
    (entry,) = entries(tmp_path)
    assert (entry.task, entry.weight, entry.objective) == ("demo", None, "lewm")


def test_compare(tmp_path, capsys, wide):
    write_run(tmp_path / "a", 1.7, weight=0.0)
    paths = {"paths": {"run_dir": "elsewhere"}, "optimizer": {"lr": 0.1}}
    write_run(tmp_path / "b", 1.65, weight=0.1, config=paths)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines()]
    assert ["bits per byte", "1.7000", "1.6500", "-0.0500"] in rows
    assert ["jepa.weight", "0.0", "0.1"] in rows
    assert ["optimizer.lr", "(absent)", "0.1"] in rows
    assert "run_dir" not in said.out
    assert "one run on each side" in said.out
    assert "the records are equal" in said.out
    assert said.err == ""


def test_rows_of_a_law_are_told_above_its_own_score(tmp_path, capsys, wide):
    for name, nll in (("a", 1.5), ("b", 1.25)):
        val = {"bpb": None, "bytes": 0, "nll": nll, "floor": 1.0}
        write_run(tmp_path / "logs" / name, 1.7, summary={"val": val})
    assert main(["ls", str(tmp_path / "logs")]) == 0
    assert "1.2500 nats (0.2500 above the law)" in capsys.readouterr().out
    assert [e.above_law for e in entries(tmp_path / "logs")] == [0.5, 0.25]
    assert main(["compare", str(tmp_path / "logs" / "a"), str(tmp_path / "logs" / "b")]) == 0
    rows = [line.split("│")[1:4] for line in capsys.readouterr().out.splitlines()]
    told = [[cell.strip() for cell in row] for row in rows]
    assert ["nats above the law's own score", "0.5000", "0.2500"] in told


def test_compare_warns_of_runs_that_are_not_comparable(tmp_path, capsys):
    write_run(tmp_path / "a", 1.7)
    other = {"precision": "bf16-mixed", "steps": 300, "versions": {"torch": "2.11.0"}}
    write_run(tmp_path / "b", 1.65, summary=other)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    warned = capsys.readouterr().err.splitlines()
    assert (
        "warning: these runs are not comparable: precision: 32-true (A), bf16-mixed (B)" in warned
    )
    assert "warning: these runs are not comparable: steps: 400 (A), 300 (B)" in warned
    assert any("version of torch" in line for line in warned)


def test_compare_without_settings(tmp_path, capsys):
    for name in "ab":
        (write_run(tmp_path / name, 1.7) / "config.json").unlink()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "at least one run has not recorded them" in capsys.readouterr().out


def test_a_report_is_built_again(tmp_path, capsys):
    folder = study(
        tmp_path / "study", paired(1.7, 0.02), against={"treatment": {"weight_0": "control"}}
    )
    assert main([str(folder)]) == 0
    said = capsys.readouterr()
    headline, sentence, _ = said.out.splitlines()
    assert headline == "objective=vicreg jepa.weight=0.1 hurts."
    assert sentence.startswith("Worse than weight 0: +0.0")
    assert said.out.endswith(f"written to {folder / 'report.html'}\n")
    assert said.err == ""
    assert (folder / "report.md").is_file()


def test_a_report_repeats_its_warnings(tmp_path, capsys):
    folder = study(
        tmp_path,
        paired(1.7, 0.02),
        against={"treatment": {"weight_0": "control"}},
        planned={"control": ("9",)},
        runs={"treatment": {"jepa": {"trunk_gradient_share": 0.0}, "summary": {"ranks": 2}}},
    )
    assert main([str(folder)]) == 0
    warned = capsys.readouterr().err
    assert "not comparable: ranks: 2 (treatment), 1 (control)" in warned
    assert "jepa/trunk_gradient_share was exactly zero" in warned
    assert "1 of 11 planned runs have no score" in warned


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/studi"], "no such folder; did you mean {}/study?"),
        (["ls", "{}/studi"], "did you mean {}/study?"),
        (["compare", "{}/study/0", "{}/study/O"], "no such folder; there are 0"),
        (["compare", "{}/study/0", "{}/studi/0"], "no such folder; did you mean {}/study?"),
        (["compare", "{}/study", "{}/study/0"], "no run there"),
        (["{}/study/0"], "there is no study.json"),
        ([], "nothing given: expected python -m jepa_lm.study FOLDER"),
        (["ls", "a", "b"], "python -m jepa_lm.study FOLDER"),
        (["ls", "--yaml"], "python -m jepa_lm.study FOLDER"),
        (["compare", "a"], "compare: 1 given; it takes two runs"),
        (["cmpare", "a", "b"], "cmpare a b: expected python -m jepa_lm.study FOLDER"),
    ],
)
def test_what_a_user_gets_wrong_is_told_in_one_line(tmp_path, capsys, arguments, said):
    study(tmp_path / "study", {"control": {"1": 1.7}})
    assert main([word.format(tmp_path) for word in arguments]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert said.format(tmp_path) in written.err


def test_the_module_runs(logs):
    done = subprocess.run(
        [sys.executable, "-m", "jepa_lm.study", "ls", str(logs)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "finished" in done.stdout
