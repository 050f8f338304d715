"""Small tasks and batches for tests of objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from jepa_lm.artifact.teacher import opener
from jepa_lm.objective import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.paths import CONF, token_objectives
from jepa_lm.utils.trusted import Trust

FOLDER = CONF / "objective"
TOKENS = tuple(token_objectives())
"""Token objectives, which `objective=` names as well."""
OBJECTIVES = tuple(
    name
    for name in sorted(path.stem for path in FOLDER.glob("*.yaml"))
    # lewm_byte has lewm's parts, in other sizes; oracle_law and llm_jepa_pairs read data that are no text
    if name not in ("base", "none", "lewm_byte", "oracle_law", "llm_jepa_pairs", *TOKENS)
)
RECIPES = tuple(sorted(f"recipes/{path.stem}" for path in (FOLDER / "recipes").glob("*.yaml")))
VARIANTS = ("vicreg_published", "distil_law", "chunk_loss_only")
FIELD = ("hilp", "lse_mtp", "stp", "stp_span", "data2vec", "bootleg", "lejepa", "lewm_paper")
"""Published objectives of language models and of vision, each with a formula in test_field.py."""
EVERY = (
    *(
        pytest.param(n, marks=pytest.mark.slow) if n in (*VARIANTS, *FIELD) else n
        for n in OBJECTIVES
    ),
    *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES),
)
"""Recipes and variants are compositions of the same parts, so their tests are among the slow ones."""


def every_but(*names: str) -> list[Any]:
    """Return `EVERY` without these."""
    return [o for o in EVERY if (o if isinstance(o, str) else o.values[0]) not in names]


NOW = "jepa.schedule=null"
"""Overrides that switch the objective on from the first step."""
ZERO = "jepa.predictor.output_start=zero"
FROZEN = "optimizer.freeze=['objective.predictor.*']"
DEEP_ENOUGH = {
    "recipes/pr1556": ("model.backbone.layers=6",),
    "bootleg": ("model.backbone.layers=4",),
}
SHALLOW = DEEP_ENOUGH | {"data2vec": ("model.backbone.layers=3",)}
"""The same for tests in a model of two blocks: the last two read three."""

Build = Callable[..., LanguageModelTask]


@pytest.fixture
def build(small) -> Build:
    """build("objective=lewm", ...) returns a small task with a clock, on one thread of the CPU."""

    def make(*overrides: str, seed: int = 0, max_steps: int = 100) -> LanguageModelTask:
        config = resolve(small(*overrides))
        check(config)
        torch.manual_seed(seed)
        clock = ProgressClock(max_steps=max_steps, max_time=None)
        return LanguageModelTask(config, clock, opener(Trust()))

    return make


def random_batch(rows: int = 4, length: int = 32, vocab: int = 400, seed: int = 0) -> dict:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (rows, length + 1), generator=draw)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:]}


def noise(module: torch.nn.Module, seed: int = 0, std: float = 0.02) -> None:
    """Add a little noise to every parameter, so that no zero start hides what lies behind it."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += std * torch.randn(p.shape, generator=draw)


def at(step: int = 0, *, max_steps: int = 100, **more: int) -> StepContext:
    clock = ProgressClock(max_steps=max_steps, max_time=None)
    clock.step = step
    return StepContext(clock, **more)


def compared(task: LanguageModelTask, batch: dict, step_context: StepContext | None = None):
    """Return the latents of a batch, the main pass and the logits."""
    model, objective = task.model, task.objective
    logits, main = model(batch["inputs"], *objective.main_needs(model))
    return objective.compare(model, batch, main, step_context or at()), main, logits


def auxiliary(
    task: LanguageModelTask, batch: dict, step_context: StepContext | None = None
) -> torch.Tensor:
    """Return the auxiliary loss of a batch."""
    model, objective = task.model, task.objective
    _, main = model(batch["inputs"], *objective.main_needs(model))
    return objective(model, batch, main, step_context or at())
