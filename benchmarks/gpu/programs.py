"""A run that is resumed, speed of evaluation, export and scoring as commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback

from benchmarks.gpu.scale import GPUS, Scale, quiet
from benchmarks.measure import Claim, at_most, report
from benchmarks.models import compose, language_model, scorer_of
from jepa_lm.data.windows import SlidingWindows
from jepa_lm.evaluation.scoring import Scorer, score_stream, score_windows
from jepa_lm.model.checkpoint import LAST_FILE, read_checkpoint
from jepa_lm.model.streaming import why_not_stream
from jepa_lm.run import train

REPO = Path(__file__).resolve().parent.parent.parent
PRESET = "pr1243_jepardy"
SHORTEST_STRIDE = "pr903_lewm_bpe"
"""Its windows overlap most, so it is the one whose time decides; it is scored compiled, too."""
STEPS, RESUMED_AT = 6, 3
VALIDATION_TOKENS = 62_000_000
"""Of FineWeb's validation split, as the challenge scores it."""
ALLOWED_SECONDS = 600.0
SAME = 1e-5
SAME_SCORE = 1e-3
"""Of bits per byte, of one file in two processes."""


def claims(scale: Scale) -> Iterator[Claim]:
    """Yield claims about resuming, evaluation and export, in this order."""
    yield resume(scale)
    yield from evaluation(scale)
    yield from export(scale)


class Repeatable(Callback):
    """Asks PyTorch for deterministic kernels where it has some, and otherwise does without."""

    def on_fit_start(self, *args: Any) -> None:
        """Set it after Lightning has set its own."""
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)

    def on_fit_end(self, *args: Any) -> None:
        """Set it back."""
        torch.use_deterministic_algorithms(False)


def resume(scale: Scale) -> Claim:
    """Compare the weights of a run of six steps with those of the run that resumes after three of them."""
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # or its products are not repeatable
    whole = _run(scale, "whole")
    checkpoint = scale.folder / "whole" / "checkpoints" / f"step-{RESUMED_AT}.ckpt"
    resumed = _run(scale, "resumed", f"ckpt_path={checkpoint}")
    value, spread = _largest(resumed, whole), 0.0
    if value:  # how much does the device differ from itself?
        spread = _largest(_run(scale, "again"), whole)
    return at_most(
        "resume/weights", value, unit="relative difference of weights", target=SAME,
        limit=0.0, spread=spread, details={"of_a_repetition": spread if value else "not measured"},
    )  # fmt: skip


def _run(scale: Scale, name: str, *overrides: str) -> dict[str, torch.Tensor]:
    """Train a few steps and return the final weights."""
    cfg = scale.config(
        PRESET,
        name,
        f"data.batch_tokens={scale.pick(16_384, 256)}",
        "compile=false",
        f"trainer.max_steps={STEPS}",
        f"checkpoint.every_n_steps={RESUMED_AT}",
        "+callbacks.repeatable._target_=benchmarks.gpu.programs.Repeatable",
        *overrides,
    )
    with quiet():
        train(cfg)
    found: dict[str, torch.Tensor] = read_checkpoint(
        scale.folder / name / "checkpoints" / LAST_FILE
    )["state_dict"]
    return found


def _largest(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a weight, relative to the largest weight of its tensor."""
    assert found.keys() == exact.keys()
    differences = (
        (found[name].double() - exact[name].double()).abs().max()
        / exact[name].double().abs().max().clamp(min=1e-30)
        for name in exact
        if exact[name].is_floating_point()
    )
    return max(float(difference) for difference in differences)


class RandomTokens:
    """A stream of random ids."""

    def __init__(self, total: int, vocabulary: int) -> None:
        self.total = total
        self.ids = np.random.default_rng(0).integers(vocabulary, size=total)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` from position `start` on."""
        out[:] = self.ids[start : start + len(out)]


def evaluation(scale: Scale) -> Iterator[Claim]:
    """Yield the seconds that scoring the challenge's validation split would take, from a small part of it."""
    for preset in (PRESET, "pr903_lewm_bpe", "pr832_byte_chunk"):
        sizes = scale.pick((), ("debug=tiny",))
        config = compose(f"experiment={preset}", *sizes)
        model = language_model(f"experiment={preset}", *sizes)
        scorer = scorer_of(model)._replace(
            device=torch.device(scale.device), precision=scale.pick("bf16-mixed", "32-true")
        )
        yield _sliding(scale, preset, config, scorer)
        if scale.full and preset == SHORTEST_STRIDE:
            yield _sliding(scale, preset, config, scorer._replace(compile=True))
        if why_not_stream(model) is None:
            yield _stream(scale, preset, config, scorer)


def _sliding(scale: Scale, preset: str, config: Any, scorer: Scorer) -> Claim:
    """Time windows that overlap by the preset's stride."""
    seq_len, stride = config.data.seq_len, config.eval.stride or config.data.seq_len
    rows, batches = max(1, config.data.val_batch_tokens // seq_len), scale.pick(12, 2)
    rows = scale.pick(rows, 2)
    tokens = RandomTokens(seq_len + batches * rows * stride + 1, scorer.model.vocab_size)
    windows = SlidingWindows(
        tokens,  # type: ignore[arg-type]
        seq_len=seq_len, stride=stride, rows=rows, device=scorer.device,
    )  # fmt: skip
    seconds = _seconds(scale, lambda: score_windows(scorer, windows))
    # The first window scores all its targets in a batch of its own; it is one of very many.
    per_second = batches * rows * stride / seconds
    alone = VALIDATION_TOKENS / per_second
    name = f"{preset}/compiled" if scorer.compile else preset
    return scale.at_most(
        f"evaluation/sliding/{name}", alone / GPUS, unit=f"s for 62 M tokens on {GPUS} GPUs",
        target=ALLOWED_SECONDS, limit=None, spread=0.0,
        details={"stride": stride, "rows": rows, "seq_len": seq_len, "targets_per_second": per_second,
                 "seconds_on_one_gpu": alone},
    )  # fmt: skip


def _stream(scale: Scale, preset: str, config: Any, scorer: Scorer) -> Claim:
    """Time one pass with carried state, which one process reads alone."""
    piece = scale.pick(config.data.val_batch_tokens, 64)
    tokens = RandomTokens(scale.pick(4, 2) * piece + 1, scorer.model.vocab_size)
    seconds = _seconds(scale, lambda: score_stream(scorer, tokens, piece=piece))  # type: ignore[arg-type]
    per_second = (tokens.total - 1) / seconds
    return scale.at_most(
        f"evaluation/stream/{preset}", VALIDATION_TOKENS / per_second,
        unit="s for 62 M tokens on 1 GPU", target=ALLOWED_SECONDS, limit=None, spread=0.0,
        details={"piece": piece, "targets_per_second": per_second},
    )  # fmt: skip


def _seconds(scale: Scale, score: Callable[[], torch.Tensor]) -> float:
    """Return the time of a second call, up to its result on the host."""
    with quiet():
        score().tolist()
        began = time.perf_counter()
        score().tolist()
    return time.perf_counter() - began


def export(scale: Scale) -> Iterator[Claim]:
    """Export the run of six steps, which scores the file in a fresh process, and score it in another one."""
    device, cache = f"device={scale.device}", f"paths.cache={scale.folder / 'cache'}"
    run, artifact = scale.folder / "whole", scale.folder / "export"
    seconds = {
        "export": _command(
            "export.py", f"ckpt_path={run}", device, cache, f"hydra.run.dir={artifact}",
            "export.codecs=[zstd]", "export.max_bpb_loss=10", "export.cap_bytes=100000000",
            "temperature=1",
        ),
        "eval": _command(
            "eval.py", f"artifact_path={artifact}", device, cache, "eval.baselines=false",
            "eval.audit=false", f"hydra.run.dir={scale.folder / 'scored'}",
        ),
    }  # fmt: skip
    account = json.loads((artifact / "export.json").read_text(encoding="utf-8"))
    scored = json.loads((scale.folder / "scored" / "eval.json").read_text(encoding="utf-8"))
    trip = account["round_trip"]["standard"]
    yield at_most(
        "export/loss", trip["bpb_loss"], unit="bits per byte lost in the file", target=0.1,
        limit=0.0, spread=0.0,
        details={"bytes": account["bytes"], **{f"{name}_command_s": s for name, s in seconds.items()}},
    )  # fmt: skip
    if account["scored_all"]:  # of the same text as eval.py
        apart = abs(scored["bpb"] - trip["artifact"]["bpb"])
        yield at_most(
            "export/same_score", apart, unit="bits per byte apart in two processes",
            target=SAME_SCORE, limit=0.0, spread=0.0, details={"bpb": scored["bpb"]},
        )  # fmt: skip
    yield report(
        "export/eval", scored["seconds"], unit="s to score the validation text", limit=None, spread=0.0,
        details={"bpb": scored["bpb"], "tokens": scored["tokens"], "device": scored["device"]},
    )  # fmt: skip


def _command(script: str, *overrides: str) -> float:
    """Run a command of the project in a process of its own, and return its seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(REPO / script), *overrides],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"{script}: exit code {done.returncode}: {done.stdout.strip()[-300:]}")
    return time.perf_counter() - began
