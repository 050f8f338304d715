"""Follow a metrics.csv that is being written: read what was appended, keep a bounded number of points."""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from jepa_lm.live.files import opened
from jepa_lm.study.recorded import LARGEST_COUNT, LARGEST_NUMBER
from jepa_lm.study.runs import LONGEST_LINE

DRAWN = 1000
"""A column keeps up to twice as many points; then every second one goes."""
BLOCK = 1 << 20
"""Bytes that are read at a time; more than the longest line."""
MOST_AT_ONCE = 2
"""Blocks that one call reads; the next call continues there."""
MOST_COLUMNS, LONGEST_NAME = 256, 100
REMEMBERED = 64
"""Bytes before the place reached that must be the same at the next reading."""
NOT_MEASURED = ("step", "epoch")


class Column:
    """Values by the number of optimizer steps done, thinned evenly; the latest value is always there."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")
        self._seen, self._every = 0, 1

    def add(self, step: int, value: float) -> None:
        """Append a value, unless its step is not later than the last one."""
        if self.steps and step <= self.steps[-1]:
            return
        if (
            self.steps and (self._seen - 1) % self._every
        ):  # the last one was kept only as the latest
            self.steps[-1], self.values[-1] = step, value
        else:
            self.steps.append(step)
            self.values.append(value)
        self._seen += 1
        if len(self.steps) > 2 * DRAWN:
            self.steps, self.values = self.steps[::2], self.values[::2]
            self._every *= 2


class Followed:
    """The columns of a metrics.csv, up to date as of the last `read`.

    Rows are added in place while a run trains; the file is replaced when a column is added or a run resumes,
    and then read anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.behind = False
        """True if the last `read` ended before the file did."""
        self._forget()

    def _forget(self) -> None:
        self.columns: dict[str, Column] = {}
        self._names: list[str] | None = None
        self._slots: list[tuple[int, Column]] = []
        self._file: tuple[int, int] | None = None
        self._at, self._before, self._overlong = 0, b"", False

    def read(self) -> None:
        """Read complete lines that were added; a line that does not fit the header is left out."""
        try:
            with opened(self.path) as file:
                if not self._continues(file):
                    self._forget()
                    about = os.fstat(file.fileno())
                    self._file = about.st_dev, about.st_ino
                self.behind = all(self._take(file) for _ in range(MOST_AT_ONCE))
                names = self._names or []
                self.columns = {names[i]: column for i, column in self._slots if column.steps}
        except OSError:
            self._forget()

    def latest(self, name: str) -> float | None:
        """Return the last value of a column, if there is one."""
        column = self.columns.get(name)
        return column.values[-1] if column else None

    @property
    def step(self) -> int | None:
        """Optimizer steps done at the last row."""
        return max((column.steps[-1] for column in self.columns.values()), default=None)

    def _continues(self, file: BinaryIO) -> bool:
        about = os.fstat(file.fileno())
        if (about.st_dev, about.st_ino) != self._file or about.st_size < self._at:
            return False
        file.seek(self._at - len(self._before))
        return file.read(len(self._before)) == self._before

    def _take(self, file: BinaryIO) -> bool:
        """Read the complete lines of the next block; return False if there were none."""
        file.seek(self._at)
        data = file.read(BLOCK)
        end = data.rfind(b"\n") + 1
        if not end:
            if len(data) <= LONGEST_LINE:
                return False  # a line that is still being written
            end, self._overlong = len(data), True
            self._pass(data, end)
            return True
        lines = data[:end].split(b"\n")[:-1]
        if self._overlong:
            lines, self._overlong = lines[1:], False
        for line in lines:
            self._line(line)
        self._pass(data, end)
        return True

    def _pass(self, data: bytes, end: int) -> None:
        self._at += end
        self._before = (self._before + data[:end])[-REMEMBERED:]

    def _line(self, line: bytes) -> None:
        if len(line) > LONGEST_LINE:
            return
        cells = line.decode("utf-8", "replace").rstrip("\r").split(",")
        if self._names is None:
            self._names = cells
            self._slots = [
                (i, Column()) for i, name in enumerate(cells[:MOST_COLUMNS]) if _fits(name)
            ]
            return
        if len(cells) != len(self._names) or "step" not in self._names:
            return
        try:
            step = int(cells[self._names.index("step")])
        except ValueError:
            return
        if not 0 <= step < LARGEST_COUNT:
            return
        for i, column in self._slots:
            if text := cells[i]:
                with suppress(ValueError):
                    value = float(text)
                    if abs(value) <= LARGEST_NUMBER:  # and so neither NaN nor infinite
                        column.add(step + 1, value)  # a row's step counts the steps before its own


def _fits(name: str) -> bool:
    return name not in NOT_MEASURED and 0 < len(name) <= LONGEST_NAME
