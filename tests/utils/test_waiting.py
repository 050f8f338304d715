"""Lines that stand in for a bar: how far the work is, from a thread, without a terminal only."""

from __future__ import annotations

import threading

import pytest

from jepa_lm.utils import console
from jepa_lm.utils.console import Screen, busy, shown
from jepa_lm.utils.waiting import about, how_far, repeating

PATIENCE = 60.0
"""Seconds after which a test gives up; it waits for a line, not for a time."""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 5 seconds"),
        (42, "about 40 seconds"),
        (94, "about 95 seconds"),
        (119, "about 2 minutes"),
        (90 * 60, "about 90 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_durations_in_words(seconds, words):
    assert about(seconds) == words


def test_a_line_says_how_far_work_is():
    assert how_far("evaluating", 0.4, 80) == "evaluating  40%  about 2 minutes left"
    assert how_far("evaluating", 0.0, 80) == "evaluating   0%"
    assert how_far("checking", None, 80) == "checking, for about 80 seconds so far"


@pytest.fixture
def lines(monkeypatch):
    """Lines that are told, at once instead of every 30 seconds, and a signal that there is a new one."""
    told, new = [], threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        new.set()

    monkeypatch.setattr(console, "tell", tell)
    monkeypatch.setattr(console, "LINE_EVERY", 0.001)

    def wait() -> str:
        for _ in range(2):  # the first may have been on its way before the work went on
            new.clear()
            assert new.wait(PATIENCE)
        return told[-1]

    return wait


def test_without_a_terminal_lines_say_how_far_the_work_is(lines):
    found, before = [], set(threading.enumerate())
    for item in shown(range(4), "evaluating", total=4):
        found.append((item, lines().split()[:2]))
    assert found == [(i, ["evaluating", f"{25 * i}%"]) for i in range(4)]
    with busy("checking"):
        assert lines().startswith("checking, for about ")
    assert set(threading.enumerate()) <= before


def test_short_work_says_nothing(capsys):
    assert list(shown(range(4), "evaluating", total=4)) == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_its_bar_and_no_lines(monkeypatch, capsys):
    monkeypatch.setattr(Screen, "is_terminal", True)
    monkeypatch.setattr(console, "repeating", None)  # would fail if it was called
    assert list(shown(range(4), "evaluating", total=4)) == [0, 1, 2, 3]
    assert "evaluating" in capsys.readouterr().err


def test_the_thread_ends_with_its_block_also_after_an_error():
    called, before = threading.Event(), set(threading.enumerate())

    def work() -> None:
        with repeating(0.001, called.set):
            assert called.wait(PATIENCE)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert set(threading.enumerate()) <= before
