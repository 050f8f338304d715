"""Records that were edited, cut short or malicious: reported in one line, and no other run's problem."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from jepa_lm.study import manifest
from jepa_lm.study.__main__ import main
from jepa_lm.study.results import collect
from jepa_lm.study.runs import Run, below_hydra, find_runs
from jepa_lm.utils.errors import UserError
from tests.study.pages import AGAINST
from tests.study.sweeps import paired, study, write_run

VALUES = [None, 5, -1, 1e400, "x", [], {}, [1], {"a": 1}, True, 10**400, float("nan"), 1e300]
SUMMARY = (
    *("val", "val.bpb", "val.nll", "val.weights", "steps", "seconds", "seed", "status", "tokens"),
    *("versions", "git", "parameters", "config_hash", "memory_bytes", "tokens_per_second"),
    *("unfinished", "jepa", "jepa.warnings", "jepa.r2", "flops_per_token", "written", "compiled"),
)
CONFIG = ("trainer", "trainer.max_steps", "jepa", "jepa.weight", "task_name", "seed", "logger")
CONFIG += ("data", "data.corpus", "data.seq_len", "data.tokenizer.vocab_size", "model", "model.dim")
BYTES = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"5",
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"null",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Three seeds of a treatment and of its control."""
    return study(tmp_path_factory.mktemp("whole"), paired(1.7, 0.02, 3), against=AGAINST)


def changed(record: dict, path: str, value: object) -> dict:
    record = copy.deepcopy(record)
    *above, name = path.split(".")
    node = record
    for part in above:
        node = node[part]
    node[name] = value
    return record


def survives(folder: Path, capsys, *, report: bool) -> None:
    """Every command that reads records exits with 0, or with 2 and one line."""
    for words in (["ls", str(folder)], ["compare", str(folder / "0"), str(folder / "3")]):
        assert main(words) in (0, 2), capsys.readouterr().err
    if report:
        collect(folder)


@pytest.mark.parametrize(
    ("file", "keys"),
    [("summary.json", SUMMARY), ("config.json", CONFIG)],
    ids=["summary", "config"],
)
def test_no_value_of_any_field_stops_a_reader(whole, tmp_path, capsys, file, keys):
    """Each field gets some of the values, so that each value is tried in many fields."""
    shutil.copytree(whole, tmp_path / "s")
    path = tmp_path / "s" / "0" / file
    record = json.loads(path.read_text(encoding="utf-8"))
    turn = itertools.cycle(VALUES)
    made = [json.dumps(changed(record, key, next(turn))).encode() for key in keys for _ in range(2)]
    whole_records = [json.dumps(value).encode() for value in VALUES]
    for i, content in enumerate((*made, *BYTES, *whole_records)):
        path.write_bytes(content)
        survives(tmp_path / "s", capsys, report=i % 6 == 0)
    assert not (tmp_path / "logs").exists()


def test_one_bad_summary_is_one_line_and_the_others_are_listed(
    whole, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "s" / "0" / "summary.json").write_text("5", encoding="utf-8")
    summary = tmp_path / "s" / "1" / "summary.json"
    record = json.loads(summary.read_text(encoding="utf-8"))
    summary.write_text(json.dumps(record | {"steps": "x"}), encoding="utf-8")
    assert main(["ls", str(tmp_path / "s")]) == 0
    said = capsys.readouterr()
    assert said.out.count("finished") == 5
    assert "damaged" in said.out
    assert sorted(said.err.splitlines()) == [
        f"warning: {tmp_path}/s/0: summary.json does not hold an object",
        f"warning: {tmp_path}/s/1: summary.json: steps is 'x', not a whole number",
    ]


def test_a_report_says_which_records_it_does_not_believe(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "s" / "0" / "summary.json").write_bytes(b"{")
    config = tmp_path / "s" / "3" / "config.json"
    config.write_text('{"trainer": 5}', encoding="utf-8")
    found = collect(tmp_path / "s")
    assert "3: config.json: trainer is 5, not an object" in found.warnings
    (failure,) = found.failures
    assert (failure.folder, failure.status) == ("0", "damaged")
    assert failure.reason.startswith("summary.json cannot be read (")


def places(record: object, path: str = "") -> list[str]:
    """Yield every place in study.json, and the first entry of each list."""
    if isinstance(record, dict):
        return [path, *(p for k, v in record.items() for p in places(v, f"{path}/{k}"))]
    if isinstance(record, list):
        return [path, *places(record[0] if record else None, f"{path}/0")]
    return [path]


def test_no_value_anywhere_in_a_plan_is_taken_for_a_plan(whole, tmp_path):
    plan = json.loads((whole / "study.json").read_text(encoding="utf-8"))
    refused = 0
    for place in places(plan)[1:]:
        *above, last = place.split("/")[1:]
        for value in VALUES:
            made = copy.deepcopy(plan)
            node = made
            for part in above:
                node = node[int(part) if isinstance(node, list) else part]
            key = int(last) if isinstance(node, list) else last
            if not node:
                continue
            node[key] = value
            (tmp_path / "study.json").write_text(json.dumps(made), encoding="utf-8")
            with suppress(UserError):
                manifest.load(tmp_path)
                continue
            refused += 1
    assert refused > 100
    for content in BYTES:
        (tmp_path / "study.json").write_bytes(content)
        with pytest.raises(UserError, match=r"study\.json"):
            manifest.load(tmp_path)


@pytest.mark.parametrize("folder", ["../../etc", "/etc", "a\0b", "a\nb", ".", ""])
def test_no_job_is_outside_of_its_sweep(whole, tmp_path, folder):
    plan = json.loads((whole / "study.json").read_text(encoding="utf-8"))
    plan["jobs"][0]["folder"] = plan["groups"][0]["runs"]["1"] = folder
    (tmp_path / "study.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(UserError, match="is not a folder below it"):
        manifest.load(tmp_path)


def test_what_a_plan_names_is_in_it(whole, tmp_path):
    plan = json.loads((whole / "study.json").read_text(encoding="utf-8"))
    for change, said in (
        ({"jobs": plan["jobs"][:-1]}, "has a run that is not a job"),
        ({"jobs": [*plan["jobs"], plan["jobs"][0]]}, "two jobs have the same name"),
        ({"groups": plan["groups"][:1]}, "there is no such group"),
        ({"identities": [{"runs": ["0", "9"], "says": "equal"}]}, "runs that are not jobs"),
        ({"format": 99}, "written by another version"),
    ):
        (tmp_path / "study.json").write_text(json.dumps({**plan, **change}), encoding="utf-8")
        with pytest.raises(UserError, match=said):
            manifest.load(tmp_path)


def test_rows_that_are_damaged_stay_alone(tmp_path):
    rows = [b"step,train/bpb", b"1,2.5", b'"2,2.25', b"\xff\xfe", b"9" * 300_000, b"-1,2", b"1e3,2"]
    rows += [b"3,1e400", b"4,1e300", b"\0\0\0", b"9" * 30 + b",2", b"5,2.0"]
    (tmp_path / "metrics.csv").write_bytes(b"\n".join(rows))
    assert Run(tmp_path).series("train/bpb") == [(1, 2.5), (5, 2.0)]


@pytest.mark.parametrize(
    "text",
    [
        '!!python/object/apply:os.system ["touch owned"]',
        "&a [*a]",
        "a: &a [1]\nb: [*a, *a]",
        "{" * 5000,
        "hydra: {runtime: {choices: {objective: [1]}}}",
        "a: " + "x" * (1 << 17),
    ],
)
def test_yaml_is_data_and_bounded(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "run", 1.7)
    for name in ("hydra.yaml", "config.yaml"):
        (folder / ".hydra" / name).write_text(text, encoding="utf-8")
    began = time.process_time()
    assert Run(folder).objective == "LatentPrediction"
    below_hydra(folder, "config.yaml")
    assert time.process_time() - began < 5
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_references_of_hydras_config_are_text(tmp_path):
    folder = write_run(tmp_path, 1.7)
    (folder / ".hydra" / "config.yaml").write_text("a: ${oc.env:HOME}", encoding="utf-8")
    assert below_hydra(folder, "config.yaml") == {"a": "${oc.env:HOME}"}


def test_copies_that_wandb_keeps_are_no_runs(tmp_path):
    """W&B keeps copies of run folders, which must not count as runs."""
    write_run(tmp_path / "wandb", 1.8)  # a task of that name
    run = write_run(tmp_path / "a", 1.7)
    for copy_of in ("wandb/run-20261121-ab12/files", "wandb/offline-run-1-x/files"):
        (run / copy_of).mkdir(parents=True)
        for name in ("config.json", "summary.json"):
            (run / copy_of / name).write_bytes((run / name).read_bytes())
    assert [found.folder for found in find_runs(tmp_path)] == [run, tmp_path / "wandb"]
