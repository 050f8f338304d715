"""Claim 3: time of an objective relative to its FLOPs.

Whole steps on a real batch, with the optimizer, are timed with cross entropy alone and with each objective,
interleaved. 1.0 means that an objective's FLOPs take as long as the model's own.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Claim, at_most, interleaved
from benchmarks.models import compose
from jepa_lm.artifact.teacher import opener
from jepa_lm.commands.train import train
from jepa_lm.data.stream import Batch, TrainBatches
from jepa_lm.data.token_data import TokenData
from jepa_lm.objective import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.auxiliary import drawn
from jepa_lm.training.flops import flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.paths import objectives, token_objectives
from jepa_lm.utils.precision import AUTOCAST, resolve_precision
from jepa_lm.utils.trusted import Trust

ROUNDS = 9
VARIANTS = ("distil_law", "lewm_paper", "llm_jepa_pairs", "stp_span")
"""Variants that compute something else than the objective they are named after."""
EXPERIMENTS = {"oracle_law": "known_law", "llm_jepa_pairs": "llm_jepa_regex"}
"""Experiments whose data hold what an objective reads; the others are timed on the demo's text."""


def config_of(experiment: str, *overrides: str) -> dict[str, Any]:
    """Return the resolved config of an experiment."""
    return resolve(compose(f"experiment={experiment}", "paths.run_dir=unused", *overrides))


def batch_of(config: dict[str, Any]) -> Batch:
    """Return the first training batch of a config."""
    data: TokenData = build("data", config["data"])
    data.prepare_data()
    data.setup()
    return next(iter(TrainBatches(data.streams["train"], data.order_of(0, 1, 1), 0)))


def teacher_in(folder: Path) -> str:
    """Train the demo's model for a step; return its folder, for objectives with a teacher."""
    train(compose("experiment=demo", "objective=none", "trainer.max_steps=1", "trainer.max_time=null",
                  "sample=false", "trainer.limit_val_batches=0", f"paths.run_dir={folder}"))  # fmt: skip
    return str(folder)


def task_of(config: dict[str, Any]) -> LanguageModelTask:
    """Return the task of a config at its first step; its schedules of weights are left out."""
    for key in ("jepa", "tokens"):
        if "schedule" in config[key]:
            config[key]["schedule"] = None
    clock = ProgressClock(max_steps=10**6, max_time=None)
    return LanguageModelTask(config, clock, opener(Trust.of(config)))


def step_of(task: LanguageModelTask, batch: Batch) -> Callable[[], None]:
    """Return a function that runs a whole optimizer step."""
    assert task.clock is not None
    clock, objectives = task.clock, task.auxiliaries
    optimizer, scheduler = task.recipe.configure(task, clock)
    dtype = AUTOCAST[resolve_precision(task.config["trainer"]["precision"], "cpu")]

    def step() -> None:
        context = drawn(objectives, frozenset(objectives), batch, StepContext(clock))
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss, _, components = task.losses(batch, context)
            for key, objective in objectives.items():
                aux = objective.total(components[key], clock)
                loss = loss + objective.scale(clock) * aux
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if task.objective is not None:
            task.objective.after_step(task.model, clock)
        clock.advance()
        scheduler.step()

    return step


def flops(task: LanguageModelTask) -> int:
    """Return the FLOPs per token, including the objective's."""
    return sum(flops_per_token(task).values())


def claims() -> Iterator[Claim]:
    """Yield a claim for each objective, latent or of tokens."""
    names = [*objectives(), *VARIANTS, *token_objectives()]
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            teacher = f"jepa.target.path={teacher_in(Path(folder, 'teacher'))}"
        for experiment in ("demo", *EXPERIMENTS.values()):
            config = config_of(experiment, "objective=none")
            batch, plain = batch_of(config), task_of(config)
            for name in (n for n in names if EXPERIMENTS.get(n, "demo") == experiment):
                words = [teacher] if name.startswith("distil") else []
                task = task_of(config_of(experiment, f"objective={name}", *words))
                yield claim(name, plain, task, batch)


def claim(name: str, plain: LanguageModelTask, task: LanguageModelTask, batch: Batch) -> Claim:
    """Time an objective's steps against those of cross entropy alone."""
    timings = interleaved(step_of(plain, batch), rounds=ROUNDS, objective=step_of(task, batch))
    time_ratio = timings.median("objective") / timings.reference
    flop_ratio = flops(task) / flops(plain)
    return at_most(
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
