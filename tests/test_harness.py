"""Benchmarks of lm-evaluation-harness on a model of ours, offline; `make harness` installs what it needs."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import yaml

import jepa_lm
from jepa_lm.utils.errors import UserError

CHOICES = (
    ("It was a truth", (" universally", " zqxj kvw"), 0),
    ("She was", (" \u00df\u00df\u00df", " a"), 1),
    ("", ("The", "xx"), 0),
)
TEXTS = ("It was a truth.", "Another line of it, universally acknowledged. " * 20)
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 9, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Path:
    """A folder of tasks over files of lines, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = {
        "choice": [
            dict(zip(("question", "choices", "answer"), row, strict=True)) for row in CHOICES
        ],
        "text": [{"text": text} for text in TEXTS],
        "write": [{"question": question, "answer": ""} for question, _, _ in CHOICES],
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, settings in TASKS.items():
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows[name]))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(lines)}}}
        task = {"task": f"ours_{name}", "test_split": "test", **data, **settings}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.mark.slow
def test_benchmarks_are_answered_by_our_scores(trained, tasks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed; run `make harness`")
    from jepa_lm.harness import main

    monkeypatch.setattr(sys, "argv", ["harness"])
    place = tmp_path / "a,b=1"  # as in the folders of a sweep
    place.symlink_to(trained.folder)
    words = [str(place), "--include_path", str(tasks), "--device", "cpu", "--log_samples"]
    names = ",".join(f"ours_{name}" for name in TASKS)
    assert main([*words, "--tasks", names, "--output_path", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]
    model = jepa_lm.load(trained.folder, device="cpu")

    right = 0
    for question, choices, answer in CHOICES:
        first, second = model.log_likelihoods([(question, choice) for choice in choices])
        right += (second.nats > first.nats) == answer
    assert found["ours_choice"]["acc,none"] == pytest.approx(right / len(CHOICES))
    # For a text of one window, this is `score`; a longer one has full windows (tests/artifact/test_api.py).
    short, long = model.log_likelihoods([("", text) for text in TEXTS])
    assert short.nats == pytest.approx(
        -model.score(TEXTS[0]) * math.log(2) * len(TEXTS[0]), rel=1e-6
    )
    bits = -(short.nats + long.nats) / math.log(2) / sum(map(len, TEXTS))
    assert found["ours_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
    assert found["ours_text"]["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-6)
    (path,) = (tmp_path / "out").rglob("samples_ours_write_*.jsonl")
    written = [json.loads(line) for line in path.read_text().splitlines()]
    for row in written:
        prompt = row["doc"]["question"]
        expected = model.continuation(prompt, 9, temperature=0, until=["e"])
        assert row["resps"] == [[expected]]
    capsys.readouterr()

    assert main([*words, "--tasks", "ours_nothing"]) == 2
    assert "error: lm_eval: ValueError: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_mistakes_about_the_model_are_one_line(trained):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed; run `make harness`")
    from jepa_lm.harness import HarnessModel, main

    assert main([]) == 2
    with pytest.raises(UserError, match="batch_size=0: a number from 1 on, or auto"):
        HarnessModel(str(trained.folder), batch_size=0)
    with pytest.raises(UserError, match=r"generation_kwargs\.top_p=0\.9: not known here"):
        HarnessModel(str(trained.folder), device="cpu")._answer("It was", {"top_p": 0.9}, 0)


def test_without_the_extra_one_line_names_it(monkeypatch, capsys):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "jepa_lm.harness", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("jepa_lm.harness", run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: lm_eval is not installed; pip install 'jepa_lm[harness]'\n"
    )
    with pytest.raises(UserError, match="lm_eval is not installed"):
        runpy.run_module("jepa_lm.harness")
