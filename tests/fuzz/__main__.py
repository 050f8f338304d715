"""Run one reader and print JSON, or run all of them and print a table; see the package."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.conftest import REPO
from tests.fuzz.frame import READERS, fuzz
from tests.fuzz.material import Material

TOTAL, PROCESSES = 20_000, 2
COLUMNS = ("reader", "mutants", "read", "refused", "wrong", "slowest s", "peak MB", "seconds")


def in_a_process(reader: str, first: int, count: int, material: Path) -> dict[str, Any]:
    """Return the output of `python -m tests.fuzz READER FIRST COUNT MATERIAL`."""
    words = [reader, str(first), str(count), str(material)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the process of {reader} ended ({done.returncode})")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def everything(total: int, folder: Path) -> int:
    """Run `total` mutants over all readers, print a table and every failure; return 1 if there is one."""
    each = -(-total // len(READERS))
    wrong: list[str] = []
    _ = Material(folder).export  # made before the processes need it
    row = ("{:10}" + "{:>10}" * (len(COLUMNS) - 1)).format
    print(row(*COLUMNS))

    def timed(reader: str) -> tuple[dict[str, Any], float]:
        began = time.perf_counter()
        return in_a_process(reader, 0, each, folder), time.perf_counter() - began

    with ThreadPoolExecutor(PROCESSES) as pool:
        for reader, (found, seconds) in zip(READERS, pool.map(timed, READERS), strict=True):
            ends = found["ends"]
            counts = [
                sum(n for end, n in ends.items() if end.endswith(word))
                for word in ("", "read", "refused")
            ]
            peak = found["peak_bytes"] >> 20
            told = (len(found["wrong"]), f"{found['slowest']:.2f}", peak, f"{seconds:.0f}")
            print(row(reader, *counts, *told), flush=True)
            wrong += [f"{reader} {problem}" for problem in found["wrong"]]
    for problem in wrong:
        print(problem)
    return 1 if wrong else 0


def main(words: list[str]) -> int:
    """Run READER FIRST COUNT [MATERIAL], or [TOTAL]."""
    with tempfile.TemporaryDirectory() as made:
        if len(words) < 3:
            return everything(int(words[0]) if words else TOTAL, Path(made))
        material = Material(Path(words[3] if len(words) > 3 else made).resolve())
        print(json.dumps(fuzz(words[0], int(words[1]), int(words[2]), material)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
