"""Claim 6: training throughput of the demo's model as a fraction of the machine's matrix-product speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import GEMM_SIZES, Claim, gemm_gflops, interleaved, matrix_product, report
from benchmarks.models import compose
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.flops import model_flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.precision import AUTOCAST, resolve_precision

ROUNDS = 9


def training_step() -> tuple[Callable[[], None], int, int, str]:
    """Return a whole step of the demo on random tokens, and its tokens, FLOPs and precision."""
    config = resolve(compose("experiment=demo", "paths.run_dir=unused"))
    precision = resolve_precision(config["trainer"]["precision"], "cpu")
    task = LanguageModelTask(config, ProgressClock(max_steps=10**6, max_time=None))
    assert task.clock is not None
    optimizer, scheduler = task.recipe.configure(task, task.clock)
    seq_len, tokens = config["data"]["seq_len"], config["data"]["batch_tokens"]
    ids = torch.randint(0, task.model.vocab_size, (tokens // seq_len, seq_len + 1))
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    dtype = AUTOCAST[precision]

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss, _, _ = task._losses(batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    return step, tokens, tokens * model_flops_per_token(task.model, seq_len), precision


def claims() -> Iterator[Claim]:
    """Yield the fraction, with its components as details."""
    step, tokens, flops, precision = training_step()
    dtype = AUTOCAST[precision] or torch.float32
    products = {f"gemm_{size}": matrix_product(size, dtype) for size in GEMM_SIZES}
    timings = interleaved(step, rounds=ROUNDS, **products)
    seconds = timings.reference
    ceiling = max(2 * n**3 / timings.median(f"gemm_{n}") / 1e9 for n in GEMM_SIZES)
    share = flops / seconds / 1e9 / ceiling
    yield report(
        "throughput/demo",
        share,
        unit="share of the GEMM ceiling",
        limit=1.0,
        spread=share * timings.spread,
        details={
            "tokens_per_second": tokens / seconds,
            "model_gflops": flops / seconds / 1e9,
            "ceiling_gflops": ceiling,
            "gemm_float32_gflops": gemm_gflops(torch.float32),
            "gemm_bfloat16_gflops": gemm_gflops(torch.bfloat16),
            "precision": precision,
            "threads": torch.get_num_threads(),
        },
    )
