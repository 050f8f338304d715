"""Bugs of this program: kept in crash.txt, reported in one line, exit code 70; system errors are no bugs."""

from __future__ import annotations

import json
import sys

import pytest

from jepa_lm import cli, run
from jepa_lm.artifact import __main__ as artifact_main
from jepa_lm.commands import rank_process
from jepa_lm.study import __main__ as study_main
from jepa_lm.study import dashboard, execution
from jepa_lm.utils.crash import CrashError, bugs_kept
from jepa_lm.utils.errors import UserError


def bug(*_):
    {}["lost"]


@pytest.fixture
def launch(monkeypatch, capsys, tmp_path):
    """launch("train", words...) -> exit code and the lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def start(command: str, *words: str) -> tuple[int, list[str]]:
        several = "-m" in words or any(word.startswith("study=") for word in words)
        where = f"hydra.sweep.dir={tmp_path}/sweep" if several else f"hydra.run.dir={tmp_path}/run"
        monkeypatch.setattr(sys, "argv", [f"{command}.py", where, *words])
        return cli.launch(command), capsys.readouterr().err.strip().splitlines()

    return start


def kept(folder) -> str:
    return (folder / "crash.txt").read_text(encoding="utf-8")


def test_a_bug_is_one_line_and_its_traceback_is_in_the_runs_folder(launch, monkeypatch, tmp_path):
    for name in ("train", "evaluate", "export"):
        monkeypatch.setattr(run, name, bug)
    for command in ("eval", "export"):
        code, lines = launch(command)
        assert code == 70
        assert lines == [
            "error: a bug in jepa_lm (KeyError: 'lost'); please report it and attach "
            f"{tmp_path / 'run' / 'crash.txt'}"
        ]
        assert 'in bug\n    {}["lost"]' in kept(tmp_path / "run")
        assert f"{command}.py hydra.run.dir=" in kept(tmp_path / "run")


def test_before_there_is_a_folder_it_is_in_logs_and_the_next_one_is_added(
    launch, monkeypatch, tmp_path
):
    monkeypatch.setattr(cli, "read_arguments", bug)
    assert [launch("eval")[0], launch("eval")[0]] == [70, 70]
    assert kept(tmp_path / "logs").count("Traceback") == 2


def test_a_job_that_crashes_or_fails_is_a_failed_job_and_the_others_go_on(
    launch, monkeypatch, tmp_path
):
    seeds = []

    def train(cfg):
        seeds.append(cfg.seed)
        if len(seeds) == 1:
            bug()
        raise OSError(5, "Input/output error", "x")

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(execution, "report", lambda *_: None)
    code, lines = launch("train", "study=same", "seed=1")
    assert code == 5
    assert seeds == [1, 1001, 1001]  # what the machine ended is tried once more
    assert lines[-1].startswith("error: 2 of 2 jobs failed; ")
    (crash,) = (tmp_path / "sweep").rglob("crash.txt")
    assert crash.parent.name == "seed-1"
    assert f"a bug in jepa_lm (KeyError: 'lost'); please report it and attach {crash}" in lines[-1]
    assert "x: Input/output error" in lines[-1]
    assert (
        json.loads((crash.parent / "summary.json").read_text(encoding="utf-8"))["status"]
        == "failed"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(107, "Transport endpoint is not connected", "a/b"), "a/b: Transport endpoint"),
        (OSError("a text alone"), "a text alone"),
        (ConnectionResetError(), "ConnectionResetError"),
        (MemoryError(), "out of memory: lower data.batch_tokens"),
        (
            RuntimeError("Allocator: can't allocate memory: you tried to allocate 80 bytes. Error"),
            "out of memory (tried to allocate 80 bytes): lower",
        ),
    ],
)
def test_what_the_system_says_is_no_bug(tmp_path, error, said):
    with pytest.raises(UserError) as told, bugs_kept(tmp_path):
        raise error
    assert said in str(told.value)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_no_crash(launch, monkeypatch, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "evaluate", stop)
    assert launch("eval") == (130, ["interrupted"])
    assert not list(tmp_path.rglob("crash.txt"))


@pytest.mark.parametrize(
    ("module", "inside", "arguments"),
    [
        (study_main, "_report", ["somewhere"]),
        (artifact_main, "contents", ["somewhere"]),
        (dashboard, "workspace", ["--entity", "me"]),
    ],
)
def test_tools_keep_their_bugs_too(monkeypatch, tmp_path, capsys, module, inside, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, inside, bug)
    assert module.main(arguments) == 70
    assert "a bug in jepa_lm (KeyError: 'lost')" in capsys.readouterr().err
    assert "in bug" in kept(tmp_path / "logs")
    monkeypatch.setattr(module, inside, lambda *_: (_ for _ in ()).throw(MemoryError))
    assert module.main(arguments) == 2


def test_a_rank_keeps_its_bug_in_the_runs_folder(monkeypatch, tmp_path, capsys):
    from jepa_lm.commands import train as training
    from jepa_lm.utils import process

    monkeypatch.setattr(process, "stop_with_parent", lambda: None)
    monkeypatch.setattr(training, "train_resolved", bug)
    monkeypatch.setenv("LOCAL_RANK", "3")
    (tmp_path / "ranks.json").write_text("{}", encoding="utf-8")
    assert rank_process.main(tmp_path / "ranks.json") == 70
    assert "error: rank 3: a bug in jepa_lm" in capsys.readouterr().err
    assert "in bug" in kept(tmp_path)


def test_where_no_file_can_be_written_the_traceback_is_shown(monkeypatch, tmp_path, capsys):
    (tmp_path / "logs").write_text("in the way", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(CrashError, match=r"crash\.txt could not be written"),
        bugs_kept(tmp_path / "logs"),
    ):
        bug()
    assert "in bug" in capsys.readouterr().err


BROKEN = [
    ("target: {checkpoint: ???}", (), "/objective/broken.yaml, line 2: while parsing a flow node"),
    (
        "target: {checkpoint: ???}",
        ("-m",),
        "/objective/broken.yaml, line 2: while parsing a flow node",
    ),
    ("a: 1", ("study=ablation", "seed=1,2", "objective=worse"), "/objective/worse.yaml, line 1: "),
    (
        "a: 1\na: 2",
        (),
        "/objective/broken.yaml, line 3: while constructing a mapping, found duplicate key a",
    ),
    ("- a", (), "jepa=['a']: expected a mapping"),
    ("a: \xff", (), "/objective/broken.yaml: cannot be read (UnicodeDecodeError"),
    ("defaults: 5", (), "objective/broken.yaml: cannot be read (ValueError: Invalid defaults list"),
]


@pytest.mark.parametrize(("text", "words", "said"), BROKEN)
def test_an_error_in_a_yaml_file_is_one_line_that_names_it(launch, tmp_path, text, words, said):
    folder = tmp_path / "mine" / "objective"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_bytes(f"# @package jepa\n{text}\n".encode("latin-1"))
    (folder / "worse.yaml").write_text("a: {b: c: d}", encoding="utf-8")
    code, lines = launch("train", f"--config-dir={tmp_path / 'mine'}", "objective=broken", *words)
    assert code == 2
    assert len(lines) == 1
    assert said in lines[0]
