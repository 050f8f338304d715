"""A training step of pure PyTorch Mamba-2 against a transformer of equal width and parameter count."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Claim, at_most, interleaved
from benchmarks.models import language_model
from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.training.flops import count_parameters, model_flops_per_token

T, ROWS, ROUNDS = 1024, 2, 7
COMMON = ("model.vocab_size=1024", "model.dim=256", "model.backbone.layers=4")
MAMBA2 = ("model=mamba2", "model.embedding.factor_dim=null")
TRANSFORMER = (
    "~model/bigram",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=2",
    "model.backbone.mlp_multiple=2.32",  # gives both about the same number of parameters
)


def step(model: LanguageModel, ids: torch.Tensor, dtype: torch.dtype | None) -> None:
    """Run forward and backward."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = token_nll(model(ids[:, :-1])[0], ids[:, 1:]).mean()
    loss.backward()
    for p in model.parameters():
        p.grad = None


def claims() -> Iterator[Claim]:
    """Yield a claim for float32 and one for bfloat16."""
    mamba2, transformer = (language_model(*COMMON, *more) for more in (MAMBA2, TRANSFORMER))
    counts = {"mamba2": count_parameters(mamba2), "transformer": count_parameters(transformer)}
    assert abs(counts["mamba2"] / counts["transformer"] - 1) < 0.02, counts
    ids = torch.randint(0, 1024, (ROWS, T + 1))
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):

        def run(model: LanguageModel, dtype: torch.dtype | None = dtype) -> Callable[[], None]:
            return lambda: step(model, ids, dtype)

        timings = interleaved(run(transformer), rounds=ROUNDS, mamba2=run(mamba2))
        ratio = timings.median("mamba2") / timings.reference
        yield at_most(
            f"mamba2_step/{name}",
            ratio,
            unit="times the transformer's step",
            target=2.0,
            limit=model_flops_per_token(mamba2, T) / model_flops_per_token(transformer, T),
            spread=ratio * timings.spread,
            details={
                "parameters": counts,
                "transformer_ms": 1000 * timings.reference,
                "mamba2_ms": 1000 * timings.median("mamba2"),
            },
        )
