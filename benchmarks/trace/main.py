"""`python -m benchmarks trace`: trace the published presets and compare them with the table of the package.

    python -m benchmarks trace                                  # all presets, minutes each
    python -m benchmarks trace --only pr832_byte_chunk          # some of them
    python -m benchmarks trace --only pr832_byte_chunk --write  # and write their rows

The table is `jepa_lm/training/traced.json`, which `describe=true describe_for=h100` reads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.trace.guard import missing

PRESETS = (
    "pr1581_span_vicreg",
    "pr1243_jepardy",
    "pr903_lewm_bpe",
    "pr903_lewm_byte",
    "pr832_byte_chunk",
    "pr1196_llm_jepa",
)
SHORT = "pr1243_jepardy_3_layers"
"""A row for a test that has no minutes to compile all layers."""
ROWS: dict[str, tuple[str, ...]] = {
    **{preset: (preset,) for preset in PRESETS},
    SHORT: (
        "pr1243_jepardy",
        "model.backbone.layers=3",
        "model.backbone.xsa_last=1",
        "model.value_embedding.layers=[1,2]",
    ),
}
"""Presets and overrides by row of the table."""
WITHIN = 0.1
"""How far a figure may be from the table's."""
COMPARED = {
    "eager": ("peak_gb", "eager_launches", "quantized_launches"),
    "inductor": (
        "kernels",
        "launches",
        "traffic_gb",
        "saved_gb",
        "product_tflop",
        "attention_tflop",
    ),
}
"""Figures in the table, by the trace that gives them."""


def figures_of(kind: str, preset: str, *overrides: str) -> dict[str, Any]:
    """Trace a preset in a process of its own.

    Raises:
        RuntimeError: the trace stopped; with its last lines, such as those about a device mismatch.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.trace", kind, preset, *overrides]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{kind} {preset}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(kind: str, row: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return which figures of a trace are not those of the table."""
    return [
        f"{key} is {found[key]:.4g}, the table has {row[key]:.4g}"
        for key in COMPARED[kind]
        if abs(found[key] - row[key]) > WITHIN * row[key]
    ]


def row_of(name: str, eager: Mapping[str, Any], compiled: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table, from both of its traces."""
    from benchmarks.models import compose
    from jepa_lm.training.estimate import CARDS, shapes_hash, tokens_of_a_gpu
    from jepa_lm.utils.config import resolve

    preset, *overrides = ROWS[name]
    config = resolve(compose(f"experiment={preset}", "paths.run_dir=unused", *overrides))
    found = {**eager, **compiled}
    figures = {key: round(found[key], 2) for keys in COMPARED.values() for key in keys}
    row = {"hash": shapes_hash(config), "tokens": tokens_of_a_gpu(config), **figures}
    return {**row, "h100_ms": round(CARDS["h100"].milliseconds(row), 1)}


def main(asked: Sequence[str]) -> int:
    """Trace, print the figures, and return 1 if any is not the table's or a step reads from the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks trace")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, with commas between")
    parser.add_argument("--write", action="store_true", help="write the rows into the table")
    chosen = parser.parse_args(asked)
    reason = missing()
    names = chosen.only.split(",")
    unknown = set(names) - set(ROWS)
    if unknown:
        reason = f"--only: no row {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}"
    if reason is not None:
        print(f"trace: {reason}", file=sys.stderr)
        return 2
    from jepa_lm.training.estimate import TABLE, table
    from jepa_lm.utils.files import write_text

    rows, failed = dict(table()), False
    for name in names:
        traces = {kind: figures_of(kind, *ROWS[name]) for kind in COMPARED}
        row = row_of(name, traces["eager"], traces["inductor"])
        print(json.dumps({"row": name, **row, **traces}, indent=2), flush=True)
        problems = [f"waits for the device: {read}" for read in traces["eager"]["reads"]]
        if chosen.write:
            rows[name] = row
            kept = {name: rows[name] for name in ROWS if name in rows}
            write_text(TABLE, json.dumps(kept, indent=2) + "\n")
        elif name not in rows:
            problems.append("not in the table; --write adds it")
        else:
            for kind, found in traces.items():
                problems += differences(kind, rows[name], found)
        for problem in problems:
            failed = True
            print(f"{name}: {problem}", file=sys.stderr)
    return int(failed)
