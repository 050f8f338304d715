"""Run benchmarks: `python -m benchmarks [name ...]`.

One JSON object per claim on stdout, progress on stderr; exit code 1 if a claim is not ok. Each
benchmark gets a process of its own, so that none finds the memory and the threads of another.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import time

import benchmarks
from jepa_lm.utils import process

HELPERS = {"__main__", "measure", "models"}
WAITING = {"cross_entropy": "ACTIVE", "optimizer_step": "ACTIVE", "export_speed": "PASSIVE"}
"""How idle threads wait, where it matters: threads that sleep, as the programs have it, wake up late for
small operations; threads that spin take a core from other processes."""


def names() -> list[str]:
    """Every benchmark: each module here that is no helper."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(set(found) - HELPERS)


def run(name: str) -> bool:
    """Print a benchmark's claims; returns whether all are ok."""
    if name in WAITING:
        os.environ.setdefault("OMP_WAIT_POLICY", WAITING[name])
        process.tune()
    began, ok = time.perf_counter(), True
    print(f"{name} ...", file=sys.stderr, flush=True)
    for claim in importlib.import_module(f"benchmarks.{name}").claims():
        print(json.dumps(claim.as_dict()), flush=True)
        ok = ok and claim.ok
    print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return ok


def main(asked: list[str]) -> int:
    """The exit code."""
    unknown = set(asked) - set(names())
    if unknown:
        print(
            f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(names())}",
            file=sys.stderr,
        )
        return 2
    if len(asked) == 1:
        return 0 if run(asked[0]) else 1
    codes = [
        subprocess.run([sys.executable, "-m", "benchmarks", name]).returncode
        for name in asked or names()
    ]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
