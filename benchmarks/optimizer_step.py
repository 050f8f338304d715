"""Claim 12: a whole update for #1243's shapes against its unavoidable matrix products.

The update consists of optimizer, gradient clipping, moving average and quantization-aware training, with
random gradients. The reference is the products of Newton-Schulz alone, with the same stacked shapes and
dtype; each is a GEMM: alpha A B + beta C.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Claim, at_most, interleaved
from benchmarks.models import compose
from jepa_lm.optim.muon import NS_DTYPES
from jepa_lm.optim.newton_schulz import COEFFICIENTS
from jepa_lm.quantization.qat import FakeQuantizedWeights
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve

PRESET = ("experiment=pr1243_jepardy", "trainer=cpu", "paths.run_dir=unused")
ROUNDS, TARGET = 9, 1.15


def products(task: LanguageModelTask, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that computes only the matrix products of Newton-Schulz."""
    work, (a, b, c) = [], COEFFICIENTS
    for group in optimizer.param_groups:
        if group["algorithm"] != "muon":
            continue
        shapes = Counter(tuple(sorted(p.shape)) for p in group["params"])
        for (small, large), count in shapes.items():
            x = torch.randn(count, small, large).to(NS_DTYPES[group["ns_dtype"]]) / large**0.5
            work.append((x, group["ns_steps"]))

    def run() -> None:
        for start, steps in work:
            x = start
            for _ in range(steps):
                gram = x @ x.mT
                update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
                x = torch.baddbmm(x, update, x, beta=a)

    return run


def claims() -> Iterator[Claim]:
    """Yield the claim."""
    config = resolve(compose(*PRESET))
    torch.manual_seed(0)
    task = LanguageModelTask(config, ProgressClock(max_steps=100, max_time=None))
    optimizer, _ = task.recipe.configure(task, task.clock)
    parameters = [p for p in task.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.randn_like(p)
    clip = config["trainer"]["gradient_clip_val"]
    stored = FakeQuantizedWeights(task.model, task.policy.training.formats(task.formats))
    parts = {
        "clip": lambda: torch.nn.utils.clip_grad_norm_(parameters, clip, foreach=True),
        "optimizer": optimizer.step,
        "average": lambda: task.averages.update(task.model, step=1, lr_factor=1.0),
        "stored_in": stored.swap_in,
        "stored_out": stored.swap_out,
    }

    def whole() -> None:
        for part in parts.values():
            part()

    timings = interleaved(products(task, optimizer), rounds=ROUNDS, whole=whole, **parts)
    yield at_most(
        "optimizer_step/pr1243",
        timings.median("whole") / timings.reference,
        unit="x Newton-Schulz products",
        target=TARGET,
        limit=1.0,
        spread=timings.spread,
        details={
            "products_ms": 1e3 * timings.reference,
            **{f"{name}_ms": 1e3 * timings.median(name) for name in ("whole", *parts)},
        },
    )
