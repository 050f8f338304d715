"""Run benchmarks: `python -m benchmarks [name ...]`.

Write one JSON object per claim to stdout and progress to stderr; exit with code 1 if a claim fails. Each
benchmark runs in its own process, so that it does not inherit the memory and threads of another.
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

HELPERS = {"__main__", "measure", "models", "plain_loop", "gpu", "trace"}
WAITING = {"cross_entropy": "ACTIVE", "optimizer_step": "ACTIVE", "export_speed": "PASSIVE"}
"""How idle threads wait, for benchmarks where it matters. Threads that sleep, as in the programs, wake up too
late for small operations; threads that spin take a core from other processes."""


def names() -> list[str]:
    """Return the names of all benchmarks: the modules of this package except the helpers."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(set(found) - HELPERS)


def run(name: str) -> bool:
    """Print a benchmark's claims and return whether all are ok."""
    if name in WAITING:
        from jepa_lm.utils import process

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
    """Run the named benchmarks, or all, and return the exit code."""
    if asked[:1] == ["gpu"]:
        from benchmarks.gpu import kit

        return kit.main(asked[1:])
    if asked[:1] == ["trace"]:
        from benchmarks.trace import main as trace

        return trace.main(asked[1:])
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
