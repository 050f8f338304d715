"""`python -m jepa_lm.data`: the data of a run, prepared without training."""

from __future__ import annotations

import re

import pytest

from jepa_lm.data.__main__ import main
from jepa_lm.utils.config import build, resolve
from tests.conftest import SMALL


@pytest.fixture
def words(small_text, tmp_path) -> list[str]:
    return [*SMALL, f"data.path={small_text}", f"paths.cache={tmp_path / 'cache'}"]


def test_a_run_finds_what_the_command_prepared(words, small_text, compose, tmp_path, capsys):
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    data = build("data", resolve(compose("train", *words))["data"])
    assert data.is_prepared()
    data.setup()
    folder = data.prepared.train[0].parent
    assert folder.parent == tmp_path / "cache" / "prepared"
    assert said[0] == (
        f"tokenizer: SentencePieceTokenizer, 400 tokens, {data.tokenizer.fingerprint[:12]}"
    )
    pattern = r"(\w+): ([\d,]+) tokens, ([\d,]+) bytes of text, (\d+) documents?, in 1 file in (.*)"
    found = [re.fullmatch(pattern, line).groups() for line in said[1:]]
    assert [(name, int(count.replace(",", ""))) for name, count, *_ in found] == [
        ("training", data.streams["train"].total),
        ("validation", data.streams["val"].total),
    ]
    assert sum(int(row[2].replace(",", "")) for row in found) == small_text.stat().st_size
    assert {row[4] for row in found} == {str(folder)}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.path=nowhere", "error: data.path=nowhere: no such file or folder"),
        ("data.seq_len=9999", "error: data.seq_len=9999: the validation split holds "),
        ("data.sequence=9", "error: data.sequence: "),
        ("study=ablation", "error: study=ablation: starts several runs"),
        ("--confug-dir=x", "error: unrecognized arguments: --confug-dir=x"),
    ],
)
def test_mistakes_are_one_line(words, change, message, capsys):
    assert main([*words, change]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
