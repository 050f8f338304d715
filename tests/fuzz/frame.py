"""Readers, and the loop that hands them mutants in a process that may die of one.

Wrong is: anything but success or a UserError; a message that is no clear line or shows a secret of the
environment; success with other contents than the file's; a file made outside of the reader's folder, a
program or a connection begun, a module imported that the file names; over 5 s of work, 1 GB; the end of the
process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from jepa_lm.utils.errors import UserError
from tests.artifact.hostile import SECRET
from tests.fuzz.material import Material
from tests.fuzz.mutations import VARIABLE
from tests.fuzz.watch import Watch

READERS = ("shards", "tokenizer", "jsonl", "hub", "artifact", "checkpoint", "configs", "records")
"""Modules of this package, each with a class `Reader`."""
NO_END = 60.0
"""Seconds after which a process is ended that has not come to the end of a mutant."""
LONGEST_LINE = 700


class Reader(Protocol):
    """One kind of file, made mutants of and read. A class that is made once in a process."""

    allowed: ClassVar[tuple[str, ...]]
    """Audit events that reading brings about; see `watch.RUNS`."""

    def __init__(self, material: Material) -> None: ...

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        """Name of the mutation, and what to read."""
        ...

    def put(self, mutant: Any, folder: Path) -> None:
        """Lay it down in an empty folder, the present one, before anything is watched."""
        ...

    def read(self, folder: Path) -> str | None:
        """Hand it to what a command calls.

        Returns:
            What is wrong with a success, or None.

        Raises:
            UserError: refused.
        """
        ...


class Told(NamedTuple):
    """What became of a mutant: `end` is read, refused, crashed or died."""

    number: int
    kind: str
    end: str
    problems: list[str]
    seconds: float
    bytes: int


def fuzz(name: str, first: int, count: int, material: Material) -> dict[str, Any]:
    """Read mutants `first` to `first + count` of a reader; what each kind came to, and what was wrong."""
    os.environ[VARIABLE] = SECRET
    reader: Reader = importlib.import_module(f"tests.fuzz.{name}").Reader(material)
    gc.collect()
    gc.freeze()
    told = list(read_all(reader, name, first, first + count))
    return {
        "ends": dict(sorted(Counter(f"{mutant.kind} {mutant.end}" for mutant in told).items())),
        "wrong": [f"{t.number} ({t.kind}): {problem}" for t in told for problem in t.problems],
        "slowest": max((mutant.seconds for mutant in told), default=0.0),
        "peak_bytes": max((mutant.bytes for mutant in told), default=0),
    }


def read_all(reader: Reader, name: str, first: int, stop: int) -> Iterator[Told]:
    """Read mutants in a child process, and in another one after each that dies."""
    while first < stop:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            try:
                _child(reader, name, first, stop, theirs)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.close(theirs)
        for line in _lines(ours):
            told = Told(*json.loads(line))
            yield told
            first = told.number + 1
        os.kill(child, signal.SIGKILL)  # one that has come to no end
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if first < stop:
            kind, _ = reader.mutant(first, _rng(name, first))
            yield Told(first, kind, "died", [f"the process ended ({ended})"], 0.0, 0)
            first += 1


def _lines(pipe: int) -> Iterator[bytes]:
    """What comes through a pipe, until it is closed or nothing comes for long."""
    begun = b""
    while select.select([pipe], [], [], NO_END)[0] and (data := os.read(pipe, 1 << 16)):
        *lines, begun = (begun + data).split(b"\n")
        yield from lines
    os.close(pipe)


def _rng(name: str, number: int) -> random.Random:
    return random.Random(f"{name} {number}")


def _child(reader: Reader, name: str, first: int, stop: int, out: int) -> None:
    watch = Watch(reader.allowed)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(first, stop):
            kind, mutant = reader.mutant(number, _rng(name, number))
            folder = Path(scratch, str(number), "in")
            folder.mkdir(parents=True)
            os.chdir(folder)
            reader.put(mutant, folder)
            end, problems = _read(reader, folder, watch)
            os.chdir(scratch)
            left = set(os.listdir(folder.parent)) - {"in"}
            problems += [f"left {sorted(left)} beside"] if left else []
            shutil.rmtree(folder.parent)
            told = Told(number, kind, end, problems, watch.seconds, watch.bytes)
            os.write(out, json.dumps(told).encode() + b"\n")


def _read(reader: Reader, folder: Path, watch: Watch) -> tuple[str, list[str]]:
    end, problems = "read", []
    with watch.over(folder) as noted:
        try:
            if (problem := reader.read(folder)) is not None:
                problems.append(problem)
        except UserError as error:
            end = "refused"
            problems += _unclear(str(error))
        except BaseException:
            end = "crashed"
            problems.append(traceback.format_exc()[-900:])
    return end, problems + noted


def _unclear(message: str) -> list[str]:
    """Line ends are of names that hold them: the commands show those as escapes."""
    if not message.strip() or len(message) > LONGEST_LINE:
        return [f"no clear line: {message[:300]!r}"]
    return [f"shows a secret: {message[:300]!r}"] if SECRET in message else []
