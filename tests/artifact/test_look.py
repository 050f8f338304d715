"""`python -m jepa_lm.artifact FILE`: the contents of the file, or one line and exit code 2."""

from __future__ import annotations

import pytest

from jepa_lm.artifact.__main__ import main
from jepa_lm.artifact.loading import TOKENIZER
from tests.artifact.forging import pack, unpack


def test_it_says_what_is_inside_of_a_file_or_of_the_folder_of_an_export(exported, capsys):
    account = exported.account
    for named in (exported.file, exported.folder):
        assert main([str(named), "limits.bytes=1000000000"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{account['bytes']:,}" in shown
        assert "stored as int 8" in shown
        assert "stored as cast float16" in shown


def test_what_a_file_says_is_shown_as_it_is(exported, tmp_path, capsys):
    tensors, meta = unpack(exported.file)
    del tensors[TOKENIZER]
    meta |= {"tokenizer": "[red]x[/red] :smile: \x1b[31m", "git": {"commit": ["a"], "dirty": "b"}}
    assert main([str(pack(tmp_path, tensors, meta))]) == 0
    shown = capsys.readouterr().out
    assert "[red]x[/red] :smile: " in shown
    assert "\x1b" not in shown
    assert "['a'] with changes" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "python -m jepa_lm.artifact FILE"),
        (("-",), "python -m jepa_lm.artifact FILE"),
        (("a", "b"), "python -m jepa_lm.artifact FILE"),
        (("{folder}/broken",), "artifact_path={folder}/broken: not an artifact of export.py"),
        (("{folder}/missing",), "artifact_path={folder}/missing: no such file"),
        (("{folder}",), "artifact_path={folder}: no artifact.* in {folder}"),
        (("/dev/null",), "artifact_path=/dev/null: no such file"),
        (("x" * 300,), "artifact_path='" + "x" * 80 + "': not a valid path (File name too long)"),
        (("a", "trust=[nobody]"), "trust=[nobody]: cannot be imported"),
        (("a", "trust=nobody"), "trust=nobody: expected a list"),
        (("a", "trust=["), "trust=[: while parsing a flow node"),
        (("a", "limits.bytes=much"), "limits.bytes=much: Value 'much' of type 'str' could not"),
        (("a", "limits.gold=1"), "limits.gold=1: Key 'gold' not in"),
        (("a", "limits.bytes=0"), "limits.bytes=0: expected a whole number of at least 1"),
    ],
)
def test_everything_wrong_is_one_line_and_exit_code_2(tmp_path, capsys, words, told):
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    assert main([word.format(folder=tmp_path) for word in words]) == 2
    out = capsys.readouterr()
    assert out.err.startswith(f"error: {told.format(folder=tmp_path)}")
    assert out.err.count("\n") == 1
    assert out.out == ""
