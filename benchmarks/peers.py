"""Claim 13: a step of the demo's model against other programs' at the same shapes, in one run.

The yardstick is a plain loop of our own (`plain_loop`); litgpt's and nanochat's models join in where they are
installed. A step is forward, backward and update, in the demo's precision: bfloat16 where the machine has fast
products of it, else float32. Shares are of the machine's rate of such products, by 6 N + attention FLOPs a
token, N being the parameters that multiply.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Claim, Timings, at_least, interleaved, matrix_product
from benchmarks.models import compose
from benchmarks.plain_loop import PlainTransformer
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.precision import AUTOCAST, resolve_precision

ROUNDS, GEMM, SHARE = 15, 2048, 0.25
SHAPE = dict(layers=5, dim=192, heads=3, kv_heads=1, vocab=1024, hidden=576, T=256)
ROWS = 8
DEMO = ("experiment=demo", "objective=none", "paths.run_dir=unused")
PLAIN = (
    "~model/bigram",
    "~model/softcap",
    "model.smear_gate=false",
    "model.backbone.xsa_last=0",
    "model.backbone.rope_dims=0",
    "model.backbone.mlp_negative_slope=0",
    "model.backbone.ln_scale=false",
    "model.backbone.resid_mix=false",
    "~optimizer.groups.matrices",
    "+optimizer.groups.matrices={match: [matrix], algorithm: adamw, lr: 0.001, betas: [0.9, 0.95], "
    "eps: 1.0e-8, weight_decay: 0.0}",
)
"""What the yardstick does not have, switched off."""
Step = Callable[[], None]


def dtype() -> torch.dtype:
    """Return the dtype of the products that the demo chooses on this machine."""
    return AUTOCAST[resolve_precision("auto", "cpu")] or torch.float32


def autocast() -> torch.autocast:
    """Return the mixed precision of all programs that do not bring their own."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype() == torch.bfloat16)


def ours(ids: Tensor, *overrides: str, compiled: bool = False) -> Step:
    """Return a step of this framework, as its trainer calls it."""
    config = resolve(compose(*DEMO, *overrides))
    task = LanguageModelTask(config, ProgressClock(max_steps=10**6, max_time=None))
    optimizer, scheduler = task.recipe.configure(task, task.clock)
    task.keep_tables()
    losses = torch.compile(task._losses) if compiled else task._losses
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}

    def step() -> None:
        with autocast():
            loss, _, _ = losses(batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    return step


def looped(loss: Callable[[], Tensor], optimizers: list[torch.optim.Optimizer]) -> Step:
    """Return a step of a plain loop."""

    def step() -> None:
        value = loss()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the fastest AdamW of PyTorch."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)


def plain(ids: Tensor) -> Step:
    """Return a step of the yardstick."""
    model = PlainTransformer(**SHAPE)

    def loss() -> Tensor:
        with autocast():
            return model(ids[:, :-1], ids[:, 1:])

    return looped(loss, [adamw(model)])


def litgpt(ids: Tensor) -> Step:
    """Return a step of litgpt's model; its MLP is gated, so 2/3 of the width has the same products."""
    from litgpt.config import Config
    from litgpt.model import GPT

    config = Config(
        block_size=SHAPE["T"],
        vocab_size=SHAPE["vocab"],
        padded_vocab_size=SHAPE["vocab"],
        n_layer=SHAPE["layers"],
        n_head=SHAPE["heads"],
        n_query_groups=SHAPE["kv_heads"],
        n_embd=SHAPE["dim"],
        intermediate_size=SHAPE["hidden"] * 2 // 3,
        mlp_class_name="LLaMAMLP",
        norm_class_name="RMSNorm",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    model = GPT(config)

    def loss() -> Tensor:
        with autocast():
            logits = model(ids[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    return looped(loss, [adamw(model)])


def nanochat(ids: Tensor) -> Step:
    """Return a step of nanochat's model with its own optimizers, Muon among them."""
    from nanochat.gpt import GPT, GPTConfig

    sizes = {f"n_{name}": SHAPE[name + "s"] for name in ("layer", "head", "kv_head")}
    model = GPT(
        GPTConfig(sequence_len=SHAPE["T"], vocab_size=SHAPE["vocab"], n_embd=SHAPE["dim"], **sizes)
    )
    model.init_weights()
    made = (getattr(model, "setup_optimizer", None) or model.setup_optimizers)()

    def loss() -> Tensor:
        with autocast():
            return model(ids[:, :-1], ids[:, 1:])

    return looped(loss, made if isinstance(made, list) else [made])


def steps() -> dict[str, Step]:
    """Return the steps of all programs that are here."""
    ids = torch.randint(0, SHAPE["vocab"], (ROWS, SHAPE["T"] + 1))
    found = {
        "demo": ours(ids),
        "demo_compiled": ours(ids, compiled=True),
        "ours_plain": ours(ids, *PLAIN),
        "ours_plain_compiled": ours(ids, *PLAIN, compiled=True),
        "plain": plain(ids),
    }
    for name, make in {"litgpt": litgpt, "nanochat": nanochat}.items():
        if importlib.util.find_spec(name) is not None:
            found[name] = make(ids)
    return found


def flops() -> float:
    """Return the FLOPs of a step at these shapes: those of the yardstick."""
    model = PlainTransformer(**SHAPE)
    parameters = sum(p.numel() for p in model.parameters())
    attention = 6 * SHAPE["layers"] * SHAPE["T"] * SHAPE["dim"]  # causal: half of the scores
    return ROWS * SHAPE["T"] * (6 * parameters + attention)


def claims() -> Iterator[Claim]:
    """Yield each comparison, and the share of the machine's rate that the compiled demo reaches."""
    torch.manual_seed(0)
    contenders = steps()
    for step in contenders.values():
        for _ in range(3):  # compiles, and lets optimizers make their state
            step()
    timings = interleaved(matrix_product(GEMM, dtype()), rounds=ROUNDS, **contenders)
    shares = {name: _share(timings, name) for name in contenders}
    details = {
        name: {"share": share, "ms": 1e3 * timings.median(name)} for name, share in shares.items()
    }
    pairs = {
        "plain": ("ours_plain", "ours_plain_compiled"),
        "litgpt": ("ours_plain", "ours_plain_compiled"),
    }
    pairs["nanochat"] = ("demo", "demo_compiled")
    for peer, mine in pairs.items():
        for name in mine if peer in contenders else ():
            ratio = timings.median(peer) / timings.median(name)
            yield at_least(
                f"peers/{name}_against_{peer}",
                ratio,
                unit="times as fast",
                target=1.0,
                limit=None,
                spread=ratio * timings.spread,
            )
    yield at_least(
        "peers/share",
        shares["demo_compiled"],
        unit="share of the GEMM rate",
        target=SHARE,
        limit=1.0,
        spread=shares["demo_compiled"] * timings.spread,
        details={
            **details,
            "dtype": str(dtype()),
            "gemm_gflops": 2 * GEMM**3 / timings.reference / 1e9,
        },
    )


def _share(timings: Timings, name: str) -> float:
    return flops() / timings.median(name) * timings.reference / (2 * GEMM**3)
