"""Runs the steps of the kit in order of value until a deadline; a second call goes on where one stopped.

Each step is a process of its own that prints claims; they are appended to the result file as they come,
so that a step that is cut off, or that crashes, loses nothing before it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import hardware, training
from benchmarks.gpu.scale import Scale
from benchmarks.measure import Claim

NO_CUDA = 2


@dataclass(frozen=True)
class Step:
    """A step of the kit.

    Args:
        claims: yields what it measures. seconds: it is killed after this long.
    """

    claims: Callable[[Scale], Iterator[Claim]]
    seconds: int


def _preset(preset: str, seconds: int, *overrides: str, name: str = "") -> Step:
    def claims(scale: Scale) -> Iterator[Claim]:
        return training.claims(scale, preset, *overrides, name=name)

    return Step(claims, seconds)


STEPS: dict[str, Step] = {
    "hardware": Step(hardware.claims, 60),
    "pr1243": _preset("pr1243_jepardy", 240),
    "pr903_bpe": _preset("pr903_lewm_bpe", 300),
    "pr832": _preset("pr832_byte_chunk", 240),
    "pr903_byte": _preset("pr903_lewm_byte", 300),
    "pr1196": _preset("pr1196_llm_jepa", 240),
    "pr1581": _preset("pr1581_span_vicreg", 240),
}
for _name, _of in (
    ("pr1243", "pr1243_jepardy"),
    ("pr903_bpe", "pr903_lewm_bpe"),
    ("pr832", "pr832_byte_chunk"),
):
    STEPS[f"{_name}_eager"] = _preset(_of, 240, "compile=false", name=f"{_of}_eager")


def main(arguments: list[str]) -> int:
    """Run the kit, or one step of it, and return the exit code: 0, 1 a claim failed, 2 no CUDA."""
    asked = _parser().parse_args(arguments)
    if not asked.rehearse and not torch.cuda.is_available():
        print("no CUDA device is available; --rehearse runs the kit on the CPU", file=sys.stderr)
        return NO_CUDA
    folder = Path(asked.out).absolute().with_suffix("")
    if asked.step:
        scale = Scale("cpu" if asked.rehearse else "cuda", folder)
        for claim in STEPS[asked.step].claims(scale):
            print(json.dumps(claim.as_dict()), flush=True)
        return 0
    results = Results(Path(asked.out))
    run(results, asked, asked.only.split(",") if asked.only else list(STEPS))
    return results.show()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu")
    parser.add_argument(
        "--budget", type=float, default=530.0, help="seconds; no step starts or goes on after"
    )
    parser.add_argument(
        "--out", default="gpu.jsonl", help="result file; a second call continues it"
    )
    parser.add_argument("--only", help=f"comma-separated steps: {','.join(STEPS)}")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument(
        "--step", choices=STEPS, help="run this step in this process and print its claims"
    )
    return parser


class Results:
    """The result file: a JSON object per line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
            ]

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, step: str) -> bool:
        """Return whether a step has come to its end."""
        return any(line.get("finished") == step for line in self.lines)

    def show(self) -> int:
        """Print a line for each claim; return 1 if one failed or a step did not end well."""
        bad = 0
        for line in self.lines:
            if "name" in line:
                word = (
                    {True: "ok  ", False: "FAIL"}[line["ok"]]
                    if line["target"] is not None
                    else "    "
                )
                target = "" if line["target"] is None else f" (target {line['target']:g})"
                print(
                    f"{word} {line['name']}: {line['value']:g} {line['unit']}{target}",
                    file=sys.stderr,
                )
                bad += not line["ok"]
            elif "failed" in line:
                print(f"FAIL {line['failed']}: {line['why']}", file=sys.stderr)
                bad += not self.has(line["failed"])
        return int(bad > 0)


def run(results: Results, asked: argparse.Namespace, names: list[str]) -> None:
    """Run the steps that the result file lacks, until the budget is used up."""
    deadline = time.monotonic() + asked.budget
    for name in names:
        left = deadline - time.monotonic()
        if results.has(name):
            continue
        if left < 20:
            print(f"{name}: no time left; call again to continue", file=sys.stderr)
            continue
        began = time.monotonic()
        why = _run_step(results, asked, name, min(left, STEPS[name].seconds))
        took = round(time.monotonic() - began, 1)
        print(f"{name}: {took} s {why}", file=sys.stderr, flush=True)
        results.add({"failed": name, "why": why} if why else {"finished": name, "seconds": took})


def _run_step(results: Results, asked: argparse.Namespace, name: str, seconds: float) -> str:
    """Run a step in a process; return why it failed, or an empty text."""
    command = [sys.executable, "-m", "benchmarks", "gpu", "--step", name, "--out", asked.out]
    log = Path(asked.out).absolute().with_suffix("") / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    cache = str(log.parent / "inductor")
    environment = {"TORCHINDUCTOR_CACHE_DIR": cache, **os.environ}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command + ["--rehearse"] * asked.rehearse,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                results.add({**json.loads(line), "step": name})
        code = process.wait()
        timer.cancel()
    if code == 0:
        return ""
    if code == -9:
        return f"cut off after {seconds:.0f} s"
    last = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return f"exit code {code}: {last[-1] if last else 'no message'} (see {log})"
