"""Steps 2 to 4 and 10: presets through `train`, at the published shapes of one GPU out of eight.

The published times are of a step on eight H100: they include the reduction of the gradients, and Muon
splits its work over the GPUs, which one GPU does alone.
"""

from __future__ import annotations

import json
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from torch._dynamo.utils import counters

from benchmarks.gpu.scale import Scale, quiet
from benchmarks.measure import Claim, at_most, report
from jepa_lm.run import train

STEPS = 60
SETTLED = range(8, 46)
"""Steps whose median is the time of a step."""
WATCHED = range(42, 46)
"""Steps in which synchronising calls are counted; no log point is among them."""
MEASURED_AT = 30
PHASES = {
    "pr1243_jepardy": ("optimizer.schedule.lr.steps=60",),  # QAT in the last 9 steps
    "pr1196_llm_jepa": ("jepa.schedule.steps=20",),
}
"""Settings that make a late phase begin within so few steps."""
PUBLISHED_MS = {"pr1243_jepardy": 84.6, "pr903_lewm_bpe": 97.4, "pr832_byte_chunk": 63.1}
GOAL_MS = {"pr1243_jepardy": 65.0, "pr903_lewm_bpe": 66.0, "pr832_byte_chunk": 50.0}
ALLOWED = 1.15
"""A step may take this many times the published time."""
MEMORY_GB = {"pr1243_jepardy": 60.0}
MEMORY_GB_ELSEWHERE = 70.0


class Watch(Callback):
    """Times each step of the latest run and counts the calls that make the host wait for the device."""

    latest: ClassVar[Watch]

    def __init__(self) -> None:
        type(self).latest = self
        self.marks: list[Any] = []
        self.waits: Counter[str] = Counter()
        """Synchronising calls in the watched steps, by the line of this project that made them."""

    def on_train_start(self, *args: Any) -> None:
        """Forget what the compiler did before."""
        counters.clear()
        self.cuda = torch.cuda.is_available()
        self._mark()

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """Begin to count waits."""
        if self.cuda and trainer.global_step + 1 in WATCHED:
            self._listening = warnings.catch_warnings()
            self._listening.__enter__()
            warnings.simplefilter("always")
            warnings.showwarning = self._heard
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Mark the end of a step."""
        if self.cuda and trainer.global_step in WATCHED:
            torch.cuda.set_sync_debug_mode("default")
            self._listening.__exit__(None, None, None)
        self._mark()

    def _heard(self, message: Any, *args: Any, **settings: Any) -> None:
        if "synchronizing" in str(message):
            ours = [f for f in traceback.extract_stack() if "jepa_lm/" in f.filename]
            place = ours[-1] if ours else traceback.extract_stack()[-4]
            self.waits[f"{place.filename.rpartition('/')[2]}:{place.lineno} {place.line}"] += 1

    def _mark(self) -> None:
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Return the time of each step."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in pairs]
        return [1000 * (b - a) for a, b in pairs]


def claims(scale: Scale, preset: str, *overrides: str, name: str = "") -> Iterator[Claim]:
    """Train for a minute at most; yield time, memory, waits and what the compiler did."""
    name = name or preset
    steps = scale.pick(STEPS, 6)
    cfg = scale.config(
        preset,
        name,
        f"trainer.max_steps={steps}",
        f"jepa.diagnostics.every={scale.pick(MEASURED_AT, 3)}",
        "+callbacks.kit._target_=benchmarks.gpu.training.Watch",
        *PHASES.get(preset, ()),
        *overrides,
    )
    began = time.perf_counter()
    with quiet():
        train(cfg)
    wall, watch = time.perf_counter() - began, Watch.latest
    summary = json.loads((scale.folder / name / "summary.json").read_text(encoding="utf-8"))
    times = watch.milliseconds()
    settled = times[SETTLED.start : SETTLED.stop] if scale.full else times[1:]
    ms, tokens = statistics.median(settled), summary["tokens"] / summary["steps"]
    flops = tokens * sum(summary["flops_per_token"].values())
    details = {
        "goal_ms": GOAL_MS.get(preset),
        "tokens_per_second": 1000 * tokens / ms,
        "tflops": flops / ms / 1e9,
        "step_ms": [round(t, 1) for t in times],
        "compile_seconds": summary["compile_seconds"],
        "wall_seconds": wall,
        "nll": summary["val"]["nll"],
        "graphs": counters["stats"].get("unique_graphs", 0),
        "recompiled": sum(counters["recompiles"].values()) if "recompiles" in counters else 0,
        "breaks": {str(k)[:160]: v for k, v in counters["graph_break"].items()},
    }
    spread = (statistics.quantiles(settled, n=4)[2] - statistics.quantiles(settled, n=4)[0]) / 2
    if preset in PUBLISHED_MS and scale.full:
        target = ALLOWED * PUBLISHED_MS[preset]
        yield at_most(
            f"{name}/step", ms, unit="ms", target=target, limit=None, spread=0.0,
            details=details | {"published_ms": PUBLISHED_MS[preset], "quartiles": spread},
        )  # fmt: skip
    else:
        yield report(f"{name}/step", ms, unit="ms", limit=None, spread=spread, details=details)
    if scale.full:
        yield at_most(
            f"{name}/memory", summary["memory_bytes"] / 1e9, unit="GB at the peak",
            target=MEMORY_GB.get(preset, MEMORY_GB_ELSEWHERE), limit=None, spread=0.0,
        )  # fmt: skip
        yield at_most(
            f"{name}/waits", sum(watch.waits.values()) / len(WATCHED), unit="waits for the device per step",
            target=0.0, limit=0.0, spread=0.0, details=dict(watch.waits),
        )  # fmt: skip
    yield at_most(
        f"{name}/breaks", float(sum(counters["graph_break"].values())), unit="breaks of the compiled graph",
        target=0.0, limit=0.0, spread=0.0,
    )  # fmt: skip
