"""Output can fail without harm: a run's record is complete before anything is shown."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import sys

import numpy as np
import pytest

from jepa_lm.commands import evaluate as command
from jepa_lm.commands import train as training
from jepa_lm.data.tokenizers import TokenBytes
from jepa_lm.evaluation.sampling import start_of_text
from jepa_lm.loggers.metrics_csv import AppendingCSVLogger
from jepa_lm.run import evaluate, train
from jepa_lm.training import summary
from jepa_lm.utils.console import Screen, as_written, showing
from jepa_lm.utils.errors import warn


class Full(io.StringIO):
    """A stream whose disk is full, or whose terminal was closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def raises(*arguments, **settings):
    raise RuntimeError("Expected tensor for argument #1 'indices' to have scalar types Long")


def test_whatever_fails_after_the_score_leaves_the_run_finished(
    small, tmp_path, monkeypatch, capsys
):
    """The probe, a logger's end, the table and a sample all fail here."""
    monkeypatch.setattr(training, "probe", raises)
    monkeypatch.setattr(summary, "continued", raises)
    monkeypatch.setattr(AppendingCSVLogger, "finalize", raises)
    monkeypatch.setattr(AppendingCSVLogger, "log_summary", raises)
    monkeypatch.setattr(sys, "stdout", Full())
    score = train(small("sample=true", "probe=true", "trainer.max_steps=1"))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (found["status"], found["val"]["bpb"]) == ("finished", score)
    told = capsys.readouterr().err
    for what in (
        "probe=true: the probe failed",
        "a logger could not write",
        "AppendingCSVLogger: ",
        "a sample",
    ):
        assert f"warning: {what}" in told
    assert "standard output cannot be written to: No space left on device" in told


def test_an_evaluation_that_cannot_be_shown_has_its_score(trained, compose, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "print_result", raises)
    cheap = ("eval.audit=false", "eval.baselines=false")
    score = evaluate(compose("eval", f"ckpt_path={trained.folder}", *cheap))
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["bpb"] == score


def test_characters_that_a_terminal_lacks_are_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    with showing("the scores"):
        Screen().print("caf\u00e9 \u2192 \U0001f600")
    assert raw.getvalue().decode() == "caf\\xe9 \\u2192 \\U0001f600\n"


def test_what_others_wrote_is_no_markup_and_no_code_of_a_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    Screen().print("[red]a[/red] :smile:", as_written("[b]\x1b[31mx\x9b\n"))
    assert out.getvalue() == "[red]a[/red] :smile: [b]\\x1b[31mx\\x9b\n\n"


def test_a_closed_terminal_takes_no_warning_and_does_no_harm(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    warn("nobody reads this")


def test_a_reader_that_goes_away_ends_no_run(monkeypatch, capsys):
    """Rich would end the program when `head` has read enough."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    with showing("the scores"):
        Screen().print("a table")
    assert "cannot be written to: Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", [None, " \n"])
def test_a_sample_has_a_start_whatever_the_tokenizer_drops(prompt):
    """A tokenizer may return no ids for whitespace."""

    class Drops:
        bos_id = None

        def encode(self, text: str) -> np.ndarray:
            return np.asarray([], dtype=np.float64)

        def token_bytes(self) -> TokenBytes:
            base = np.asarray([0, 0, 3, 1])
            return TokenBytes(base, base < 0, base == 0)

    assert start_of_text(Drops(), prompt) == [2]


def test_a_score_that_is_no_number_is_a_failure(small, tmp_path, monkeypatch):
    from jepa_lm.training.validation import ValidationScores

    scores = ValidationScores.scores

    def broken(self, strategy):
        found = scores(self, strategy)
        return {n: dataclasses.replace(s, nll=math.nan) for n, s in found.items()}

    monkeypatch.setattr(ValidationScores, "scores", broken)
    with pytest.raises(ValueError, match=r"val/nll is nan at step 1: .*an earlier checkpoint"):
        train(small("trainer.max_steps=1"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
