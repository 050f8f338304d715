"""The fuzzers' frame reports everything that a reader may do wrong."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from jepa_lm.utils.errors import UserError
from tests.artifact.hostile import SECRET
from tests.fuzz import frame
from tests.fuzz.frame import READERS, read_all
from tests.fuzz.material import Material
from tests.fuzz.mutations import BAIT, damaged
from tests.fuzz.watch import Watch


def refuse(text):
    raise UserError(text)


def much_memory(folder):
    bytearray(b"x") * (60 << 20)


WRONG = {
    "ended (7)": lambda folder: os._exit(7),
    "ValueError": lambda folder: int("x"),
    "SystemExit": lambda folder: sys.exit(0),
    "no clear line": lambda folder: refuse(""),
    "no clear line: 'xx": lambda folder: refuse("x" * 1000),
    "shows a secret": lambda folder: refuse(f"data.path={SECRET}"),
    "printed": lambda folder: print(SECRET),
    "open of": lambda folder: (folder / "../beside").write_text("x", encoding="utf-8"),
    "left ['beside'] beside": lambda folder: (folder / "../beside").touch(),
    "os.mkdir of": lambda folder: os.mkdir("/tmp/beside/the/folder"),
    "os.rename of": lambda folder: os.rename("here", "../there"),
    "subprocess.Popen": lambda folder: subprocess.Popen(["true"]).wait(),
    "os.system": lambda folder: os.system("true"),
    "socket.connect": lambda folder: socket.create_connection(("127.0.0.1", 9)),
    "import of": lambda folder: importlib.import_module(BAIT),
    "other contents": lambda folder: "other contents",
    "MB": much_memory,
}
RIGHT = {
    "read": lambda folder: np.savetxt(folder / "a.txt", [1]),
    "refused": lambda folder: refuse("data.path=x: no such file"),
}


class Planted:
    """Mutant i commits fault number i."""

    allowed = ()
    calls = (*RIGHT.items(), *WRONG.items())

    def mutant(self, number, rng):
        return self.calls[number][0], self.calls[number][1]

    def put(self, mutant, folder):
        self.call = mutant

    def read(self, folder):
        told = self.call(folder)
        return told if isinstance(told, str) else None


def test_everything_wrong_is_told_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr("tests.fuzz.watch.MOST_BYTES", 50 << 20)
    told = list(read_all(Planted(), "planted", 0, len(Planted.calls)))
    assert [mutant.kind for mutant in told] == [name for name, _ in Planted.calls]
    for mutant, right in zip(told, RIGHT, strict=False):
        assert (mutant.end, mutant.problems) == (right, [])
    for mutant in told[len(RIGHT) :]:
        assert any(mutant.kind in problem for problem in mutant.problems), mutant
    assert told[len(RIGHT)].end == "died"


def test_a_reader_that_comes_to_no_end_is_ended(monkeypatch):
    monkeypatch.setattr(frame, "NO_END", 0.5)
    monkeypatch.setattr(Planted, "calls", (("asleep", lambda folder: os.read(os.pipe()[0], 1)),))
    (told,) = read_all(Planted(), "planted", 0, 1)
    assert told.problems == ["the process ended (-9)"]


def test_slowness_is_told(tmp_path, monkeypatch):
    for limit in ("HANG", "WAITED"):
        with monkeypatch.context() as patched:
            patched.setattr(f"tests.fuzz.watch.{limit}", 0.0)
            with Watch().over(tmp_path) as noted:
                pass
            assert noted[0].startswith("took 0.0 s of work")


@pytest.mark.parametrize("name", READERS[:4])  # the other readers start with a run
def test_a_mutant_depends_on_its_number_alone(name, tmp_path):
    made = importlib.import_module(f"tests.fuzz.{name}").Reader(Material(tmp_path))
    first = [made.mutant(number, frame._rng(name, number)) for number in range(30)]
    assert first[20:] == [made.mutant(number, frame._rng(name, number)) for number in range(20, 30)]
    assert first[:10] != first[10:20]


def test_damage_leaves_the_original_alone():
    original = {"a": [1, {"b": 2}], "c": "x"}
    copies = [damaged(original, frame._rng("x", number)) for number in range(200)]
    assert original == {"a": [1, {"b": 2}], "c": "x"}
    assert sum(copy != original for copy in copies) > 150
