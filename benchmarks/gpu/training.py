"""Presets through `train`, at the published shapes of one GPU out of eight.

The published times are of a step on eight H100: they include the reduction of the gradients, and Muon
splits its work over the GPUs, which one GPU does alone.

A run has log points at steps 20, 40 and 60, measurements of the objective at 30 and 60, steps whose waits are
counted, steps that are profiled, and, in presets that have one, a late phase.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.profile import Profile, account
from benchmarks.gpu.scale import Scale, quiet
from benchmarks.gpu.watch import PARTS, Watch
from benchmarks.measure import Claim, at_most, report
from jepa_lm.artifact.teacher import opener
from jepa_lm.run import train
from jepa_lm.training.flops import flops_per_token, outline
from jepa_lm.utils.config import resolve
from jepa_lm.utils.trusted import Trust

PHASES = {
    "pr1243_jepardy": ("optimizer.schedule.lr.steps=60",),  # QAT in the last 9 steps
    "pr1196_llm_jepa": ("jepa.schedule.steps=20",),
}
"""Settings that make a late phase begin within so few steps."""
COMPILES_LATE = ("pr1196_llm_jepa",)
"""Presets whose late phase has a graph of its own."""
PUBLISHED_MS = {"pr1243_jepardy": 84.6, "pr903_lewm_bpe": 97.4, "pr832_byte_chunk": 63.1}
GOAL_MS = {"pr1243_jepardy": 65.0, "pr903_lewm_bpe": 66.0, "pr832_byte_chunk": 50.0}
ALLOWED = 1.15
"""A step may take this many times the published time."""
MEMORY_GB = {"pr1243_jepardy": 60.0}
MEMORY_GB_ELSEWHERE = 70.0
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
}
"""Dense bfloat16 products, by the vendor's data sheets; the first name that the card's contains counts."""


@dataclass(frozen=True)
class Plan:
    """What happens at which of a run's steps, all counted from 1.

    Args:
        steps: of the run. settled: steps whose median is the time of a step. measured: every so many steps.
        watched: first and last step in which waits are counted. profiled: first step, and how many.
    """

    steps: int
    settled: tuple[int, int]
    measured: int
    watched: tuple[int, int]
    profiled: tuple[int, int]


FULL = Plan(steps=60, settled=(9, 41), measured=30, watched=(42, 45), profiled=(47, 3))
TINY = Plan(steps=5, settled=(2, 4), measured=3, watched=(3, 4), profiled=(5, 1))


def claims(scale: Scale, preset: str, *overrides: str, name: str = "") -> Iterator[Claim]:
    """Train for a minute at most; yield time, memory, waits, what the compiler did, and the profile."""
    name, plan = name or preset, FULL if scale.full else TINY
    began = time.perf_counter()
    summary = _trained(scale, preset, name, plan, overrides)
    wall, watch = time.perf_counter() - began, Watch.latest
    first, last = plan.settled
    settled = watch.milliseconds()[first - 1 : last]
    parts = {
        f"{part}_ms": statistics.median(watch.parts()[part][first - 1 : last]) for part in PARTS
    }
    ms, tokens = statistics.median(settled), summary["tokens"] / summary["steps"]
    tflops = tokens * summary["step_flops_per_token"] / ms / 1e9
    details = {
        "goal_ms": GOAL_MS.get(preset),
        **parts,
        "quartiles_ms": _quartiles(settled),
        "last_steps_ms": statistics.median(watch.milliseconds()[-4:-1]),
        "tokens_per_second": 1000 * tokens / ms,
        "step_ms": [round(t, 1) for t in watch.milliseconds()],
        "compile_seconds": summary["compile_seconds"],
        "training_seconds": summary["seconds"],
        "wall_seconds": wall,
        "nll": summary["val"]["nll"],
    }
    yield _time(scale, preset, name, ms, details)
    yield from _rate(scale, name, tflops)
    if scale.full:
        target = MEMORY_GB.get(preset, MEMORY_GB_ELSEWHERE)
        yield at_most(
            f"{name}/memory", summary["memory_bytes"] / 1e9, unit="GB at the peak",
            target=target, limit=None, spread=0.0,
        )  # fmt: skip
        yield at_most(
            f"{name}/waits", sum(watch.waits.values()) / len(watch.watched),
            unit="waits for the device per step", target=0.0, limit=0.0, spread=0.0,
            details=dict(watch.waits),
        )  # fmt: skip
    yield from _compiler(preset, name, plan, watch)
    yield _profile(name, plan, ms)


def _trained(
    scale: Scale, preset: str, name: str, plan: Plan, overrides: Sequence[str]
) -> dict[str, Any]:
    """Train, and return the summary of the run."""
    module = "benchmarks.gpu"
    cfg = scale.config(
        preset,
        name,
        f"trainer.max_steps={plan.steps}",
        f"jepa.diagnostics.every={plan.measured}",
        f"+callbacks.watch._target_={module}.watch.Watch",
        f"+callbacks.watch.first={plan.watched[0]}",
        f"+callbacks.watch.last={plan.watched[1]}",
        f"+callbacks.profile._target_={module}.profile.Profile",
        f"+callbacks.profile.first={plan.profiled[0]}",
        f"+callbacks.profile.count={plan.profiled[1]}",
        *PHASES.get(preset, ()),
        *overrides,
    )
    with quiet():
        train(cfg)
    found: dict[str, Any] = json.loads(
        (scale.folder / name / "summary.json").read_text(encoding="utf-8")
    )
    counted = flops_per_token(outline(resolve(cfg), opener(Trust())))  # of a step with all losses
    return found | {"step_flops_per_token": sum(counted.values())}


def _time(scale: Scale, preset: str, name: str, ms: float, details: dict[str, Any]) -> Claim:
    """Return the time of a step; a claim where a time is published."""
    if preset not in PUBLISHED_MS or not scale.full or name != preset:
        return report(f"{name}/step", ms, unit="ms", limit=None, spread=0.0, details=details)
    published = PUBLISHED_MS[preset]
    return at_most(
        f"{name}/step", ms, unit="ms", target=ALLOWED * published, limit=None, spread=0.0,
        details={"published_ms": published, **details},
    )  # fmt: skip


def _rate(scale: Scale, name: str, tflops: float) -> Iterator[Claim]:
    """Yield model FLOPs per second, and their share of what the card's data sheet promises."""
    yield report(f"{name}/rate", tflops, unit="TFLOP/s of the model", limit=None, spread=0.0)
    card = torch.cuda.get_device_name() if scale.full else ""
    peak = next((peak for model, peak in PEAK_TFLOPS.items() if model in card), None)
    if peak is not None:
        yield report(
            f"{name}/mfu", tflops / peak, unit=f"of {peak:g} TFLOP/s", limit=1.0, spread=0.0
        )


def _compiler(preset: str, name: str, plan: Plan, watch: Watch) -> Iterator[Claim]:
    """Yield breaks of the graph, and what was compiled once the steps had settled."""
    breaks = counters["graph_break"]
    yield at_most(
        f"{name}/breaks", float(sum(breaks.values())), unit="breaks of the compiled graph",
        target=0.0, limit=0.0, spread=0.0,
        details={str(reason)[:160]: count for reason, count in breaks.items()},
    )  # fmt: skip
    late = sum(count for step, count in watch.graphs.items() if step >= plan.settled[0])
    figures: dict[str, Any] = dict(
        unit="graphs compiled late", limit=0.0, spread=0.0,
        details={f"step {step}": count for step, count in watch.graphs.items()},
    )  # fmt: skip
    if preset in COMPILES_LATE:
        yield report(f"{name}/recompiled", float(late), **figures)
    else:
        yield at_most(f"{name}/recompiled", float(late), target=0.0, **figures)


def _profile(name: str, plan: Plan, ms: float) -> Claim:
    """Return the share of a step's time in which the device works, and its account."""
    found = Profile.latest
    details: dict[str, Any] = {"refused": found.refused} if found.refused else {}
    share = 0.0
    if found.kernels:
        details = account(found.kernels, plan.profiled[1], ms)
        share = details["busy_ms"] / ms
    return report(
        f"{name}/profile", share, unit="of the step with a kernel running", limit=1.0, spread=0.0,
        details=details,
    )  # fmt: skip


def _quartiles(values: Sequence[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [round(low, 2), round(high, 2)]
