"""Trace one preset in this process: `python -m benchmarks.trace eager|inductor PRESET [OVERRIDE ...]`."""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.trace import guard


def main(kind: str, preset: str, *overrides: str) -> None:
    """Trace a preset: KIND is `eager` or `inductor`."""
    guard.load()
    from benchmarks.trace.device import pretend  # imports PyTorch

    pretend()
    from benchmarks.trace.step import prepare

    module = importlib.import_module(f"benchmarks.trace.{kind}")
    print(json.dumps(module.trace(prepare(preset, overrides))))


if __name__ == "__main__":
    main(*sys.argv[1:])
