"""Claim 3: time of an objective relative to its FLOPs.

Whole steps of the demo's model on random tokens, with its optimizer, are timed with cross entropy alone and
with each objective, interleaved. 1.0 means that an objective's FLOPs take as long as the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Claim, at_most, interleaved
from benchmarks.models import compose
from jepa_lm.objective import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.flops import flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.paths import objectives
from jepa_lm.utils.precision import AUTOCAST, resolve_precision

ROUNDS = 9
NOW = "jepa.schedule=null"


def task_of(*overrides: str) -> LanguageModelTask:
    """Return the demo's task with these overrides."""
    config = resolve(compose("experiment=demo", "paths.run_dir=unused", *overrides))
    return LanguageModelTask(config, ProgressClock(max_steps=10**6, max_time=None))


def step_of(task: LanguageModelTask) -> Callable[[], None]:
    """Return a function that runs a whole optimizer step."""
    assert task.clock is not None
    clock = task.clock
    optimizer, scheduler = task.recipe.configure(task, clock)
    data = task.config["data"]
    rows = data["batch_tokens"] // data["seq_len"]
    ids = torch.randint(0, task.model.vocab_size, (rows, data["seq_len"] + 1))
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    dtype = AUTOCAST[resolve_precision(task.config["trainer"]["precision"], "cpu")]

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            context = None if task.objective is None else StepContext(clock)
            loss, _, components = task._losses(batch, context)
            if task.objective is not None:
                aux = task.objective.total(components, clock)
                loss = loss + task.objective.scale(clock) * aux
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.advance()
        scheduler.step()
        if task.objective is not None:
            task.objective.after_step(task.model, clock)

    return step


def flops(task: LanguageModelTask) -> int:
    """Return the FLOPs per token, including the objective's."""
    return sum(flops_per_token(task).values())


def claims() -> Iterator[Claim]:
    """Yield a claim for each objective."""
    plain = task_of("objective=none")
    step = step_of(plain)
    for name in objectives():
        task = task_of(f"objective={name}", NOW)
        timings = interleaved(step, rounds=ROUNDS, objective=step_of(task))
        time_ratio = timings.median("objective") / timings.reference
        flop_ratio = flops(task) / flops(plain)
        yield at_most(
            f"jepa_efficiency/{name}",
            time_ratio / flop_ratio,
            unit="time ratio / FLOP ratio",
            target=1.10,
            limit=1.0,
            spread=timings.spread * time_ratio / flop_ratio,
            details={
                "time_ratio": time_ratio,
                "flop_ratio": flop_ratio,
                "plain_ms": 1000 * timings.reference,
            },
        )
