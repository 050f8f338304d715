"""Losses of six presets on the device, at small widths, against float64 on the CPU, and stored weights.

The structure is the preset's, the sizes are those of `debug=tiny`. Noise on the weights keeps any part from
being inert.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.parity import COARSE, EXACT, EXACT_GRADIENT, agrees
from benchmarks.gpu.scale import Scale
from benchmarks.measure import Claim, at_most
from benchmarks.models import compose
from jepa_lm.objective import StepContext
from jepa_lm.quantization.qat import FakeQuantizedWeights
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve

PRESETS = (
    "pr1243_jepardy",
    "pr903_lewm_bpe",
    "pr832_byte_chunk",
    "pr903_lewm_byte",
    "pr1196_llm_jepa",
    "pr1581_span_vicreg",
)
ROWS = 8
MIDWAY = 50
"""Step of 100 at which losses are computed: objectives that begin late are active."""
COARSE_GRADIENT = 3e-2
"""Of all gradients of a preset, with products in bfloat16."""
FLIPPED = 1e-4
"""Share of stored values that may be rounded to the neighbouring integer: ties, after scales that differ in
their last bit."""


def claims(scale: Scale) -> Iterator[Claim]:
    """Yield claims about each preset: float32, bfloat16, and weights as export stores them."""
    for preset in PRESETS:
        task = small_task(preset)
        batch = small_batch(task)
        loss, gradients = _loss(copy.deepcopy(task).double(), batch, None)
        here = copy.deepcopy(task).to(scale.device)
        found, found_gradients = _loss(here, batch, None)
        name = f"loss/{preset}"
        yield agrees(f"{name}/float32", [found], [loss], EXACT)
        yield agrees(f"{name}/float32/gradient", [found_gradients], [gradients], EXACT_GRADIENT)
        found, found_gradients = _loss(here, batch, torch.bfloat16)
        yield agrees(f"{name}/bfloat16", [found], [loss], COARSE)
        yield agrees(f"{name}/bfloat16/gradient", [found_gradients], [gradients], COARSE_GRADIENT)
        yield _stored(preset, task, here)


def compiled_claims(scale: Scale) -> Iterator[Claim]:
    """Yield claims about each preset's compiled loss; a rehearsal traces one and generates no code."""
    backend = scale.pick("inductor", "eager")
    for preset in scale.pick(PRESETS, PRESETS[:1]):
        task = small_task(preset)
        batch = small_batch(task)
        loss, gradients = _loss(copy.deepcopy(task).double(), batch, None)
        here = task.to(scale.device)
        torch._dynamo.reset()
        here.losses = torch.compile(here._losses, backend=backend)
        began = time.perf_counter()
        found, found_gradients = _loss(here, batch, torch.bfloat16)
        details = {"backend": backend, "seconds": time.perf_counter() - began}
        name = f"compiled/{preset}"
        yield agrees(name, [found], [loss], COARSE, **details)
        yield agrees(f"{name}/gradient", [found_gradients], [gradients], COARSE_GRADIENT)


def small_task(preset: str, *overrides: str) -> LanguageModelTask:
    """Return a small task of a preset, with its weights and some noise, on the CPU."""
    config = resolve(
        compose(
            f"experiment={preset}",
            "debug=tiny",
            "compile=false",
            "paths.run_dir=unused",
            *overrides,
        )
    )
    torch.manual_seed(0)
    task = LanguageModelTask(config, step_clock())
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in task.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.02)
    return task


def step_clock() -> ProgressClock:
    """Return a clock in the middle of a run."""
    clock = ProgressClock(max_steps=2 * MIDWAY, max_time=None)
    clock.step = MIDWAY
    return clock


def small_batch(task: LanguageModelTask) -> dict[str, Tensor]:
    """Return a batch of random tokens, on the CPU."""
    draw = torch.Generator().manual_seed(2)
    shape = (ROWS, task.config["data"]["seq_len"] + 1)
    ids = torch.randint(task.model.vocab_size, shape, generator=draw)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:]}


def _loss(
    task: LanguageModelTask, batch: dict[str, Tensor], dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Return the training loss, with the objective at its full weight, and all gradients as one vector."""
    device, clock = next(task.parameters()).device, step_clock()
    task.zero_grad()
    here = {name: ids.to(device) for name, ids in batch.items()}
    assert task.objective is not None
    task.keep_tables()
    context = task.objective.draw(here["inputs"], StepContext(clock))  # as in `training_step`
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        loss, _, components = task.losses(here, context)
        loss = loss + task.objective.total(components["jepa"], clock)
    loss.backward()
    gradients = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
    return loss, torch.cat(gradients)


def _stored(preset: str, task: LanguageModelTask, here: LanguageModelTask) -> Claim:
    """Return the claim that a device stores the weights as the CPU does, apart from ties."""
    flipped, values = 0, 0
    formats = task.policy.training.formats(task.formats)
    with (
        FakeQuantizedWeights(task.model, formats).swapped(),
        FakeQuantizedWeights(here.model, formats).swapped(),
    ):
        for exact, found in zip(task.model.parameters(), here.model.parameters(), strict=True):
            a, b = exact.detach(), found.detach().cpu()
            # A scale that differs in its last bits changes values by less than a step of the integers.
            flipped += int((a - b).abs().gt(1e-3 * a.abs().max()).sum())
            values += a.numel()
    return at_most(
        f"parity/stored/{preset}", flipped / values, unit="of the stored values differ",
        target=FLIPPED, limit=0.0, spread=0.0, details={"values": values},
    )  # fmt: skip
