"""Readers, and the loop that hands them mutants in a process that may die of one.

A mutant fails if its reader ends in anything but success or a UserError; prints a message that is not one
clear line or that shows a secret of the environment; succeeds with other contents than the file's; makes a
file outside of its folder, starts a program or a connection, or imports a module that the file names; takes
over 5 s of work or 1 GB; or ends the process.
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
"""Seconds after which a process that has not finished a mutant is ended."""
LONGEST_LINE = 700


class Reader(Protocol):
    """One kind of file: makes mutants of it and reads them. Built once in a process."""

    allowed: ClassVar[tuple[str, ...]]
    """Audit events that reading causes; see `watch.RUNS`."""

    def __init__(self, material: Material) -> None: ...

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        """Return the name of the mutation, and what to read."""
        ...

    def put(self, mutant: Any, folder: Path) -> None:
        """Write it into an empty folder, the current one, before anything is watched."""
        ...

    def read(self, folder: Path) -> str | None:
        """Pass it to what a command calls.

        Returns:
            What is wrong with a success, or None.

        Raises:
            UserError: the file was refused.
        """
        ...


class Told(NamedTuple):
    """The outcome of a mutant: `end` is read, refused, crashed or died."""

    number: int
    kind: str
    end: str
    problems: list[str]
    seconds: float
    bytes: int


def fuzz(name: str, first: int, count: int, material: Material) -> dict[str, Any]:
    """Read mutants `first` to `first + count`; return outcomes by kind of mutation, and every failure."""
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
    """Read mutants in a child process, and in a new one after each mutant that ends it."""
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
        os.kill(child, signal.SIGKILL)  # a mutant that never ends
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if first < stop:
            kind, _ = reader.mutant(first, _rng(name, first))
            yield Told(first, kind, "died", [f"the process ended ({ended})"], 0.0, 0)
            first += 1


def _lines(pipe: int) -> Iterator[bytes]:
    """Yield lines from a pipe until it closes or stays silent for too long."""
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
    """Line ends inside names are allowed: the commands show them as escapes."""
    if not message.strip() or len(message) > LONGEST_LINE:
        return [f"no clear line: {message[:300]!r}"]
    return [f"shows a secret: {message[:300]!r}"] if SECRET in message else []
