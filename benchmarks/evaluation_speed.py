"""Claims 7 and 8: stream scores against sliding windows; sliding scores against bare forward passes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.measure import Claim, at_least, at_most, interleaved
from benchmarks.models import language_model, scorer_of
from jepa_lm.data.windows import SlidingWindows
from jepa_lm.evaluation.scoring import score_stream, score_windows
from jepa_lm.model import LanguageModel, token_nll

T, STRIDE, ROWS = 1024, 64, 8
TOKENS = {"stream": 12 * T + 1, "sliding": 2 * T + 12 * STRIDE + 1}
ROUNDS = 3
BACKBONES = ("mamba2", "transformer")


class RandomTokens:
    """A stream of random ids."""

    def __init__(self, total: int, vocab_size: int) -> None:
        self.total = total
        self.ids = np.random.default_rng(0).integers(vocab_size, size=total)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` from position `start` on."""
        out[:] = self.ids[start : start + len(out)]


def windows_of(model: LanguageModel, tokens: int) -> SlidingWindows:
    """Return sliding windows over random tokens."""
    stream = RandomTokens(tokens, model.vocab_size)
    return SlidingWindows(
        stream,  # type: ignore[arg-type]
        seq_len=T,
        stride=STRIDE,
        rows=ROWS,
        device=torch.device("cpu"),
    )


@torch.inference_mode()
def bare(model: LanguageModel, windows: SlidingWindows) -> float:
    """Run every window through the whole model and return the nats of the scored targets."""
    nats = 0.0
    for i in range(len(windows)):
        batch = windows[i]
        targets = batch["targets"]
        logits = model(batch["inputs"])[0][:, -targets.shape[1] :]
        nats += token_nll(logits, targets).sum(dtype=torch.float64).item()
    return nats


@torch.inference_mode()
def forwards(model: LanguageModel, windows: SlidingWindows) -> None:
    """Run only the forward passes."""
    for i in range(len(windows)):
        model(windows[i]["inputs"])


def claims() -> Iterator[Claim]:
    """Yield the claim about the stream, then sliding windows with both backbones."""
    yield stream_claim()
    for backbone in BACKBONES:
        yield sliding_claim(backbone)


def stream_claim() -> Claim:
    """Measure claim 7."""
    model = language_model("model=mamba2", "model.backbone.layers=4").eval()
    windows = windows_of(model, TOKENS["stream"])
    stream = RandomTokens(TOKENS["stream"], model.vocab_size)
    scorer = scorer_of(model)
    with torch.inference_mode():
        ids = torch.from_numpy(stream.ids)[None]
        whole = token_nll(model(ids[:, :-1])[0], ids[:, 1:]).sum(dtype=torch.float64).item()
    nats = score_stream(scorer, stream, piece=1000)[0].item()  # type: ignore[arg-type]
    assert abs(nats / whole - 1) < 1e-6, (nats, whole)
    timings = interleaved(
        lambda: score_windows(scorer, windows),
        rounds=ROUNDS,
        stream=lambda: score_stream(scorer, stream, piece=4 * T),  # type: ignore[arg-type]
    )
    speedup = timings.reference / timings.median("stream")
    encoded = 1 + windows.full + (windows.left > 0)
    return at_least(
        "evaluation_speed/stream",
        speedup,
        unit="times faster than sliding windows of the same stride",
        target=0.7 * T / STRIDE,
        limit=encoded * T / (TOKENS["stream"] - 1),
        spread=speedup * timings.spread,
        details={
            "seq_len": T,
            "stride": STRIDE,
            "tokens": TOKENS["stream"],
            "sliding_s": timings.reference,
            "stream_s": timings.median("stream"),
            "relative_difference_to_one_pass": nats / whole - 1,
        },
    )


def sliding_claim(backbone: str) -> Claim:
    """Measure claim 8."""
    model = language_model(f"model={backbone}").eval()
    windows, scorer = windows_of(model, TOKENS["sliding"]), scorer_of(model)
    expected, got = bare(model, windows), score_windows(scorer, windows)[0].item()
    assert abs(got / expected - 1) < 1e-6, (got, expected)
    timings = interleaved(
        lambda: forwards(model, windows),
        rounds=ROUNDS,
        sliding=lambda: score_windows(scorer, windows),
    )
    ratio = timings.median("sliding") / timings.reference
    return at_most(
        f"evaluation_speed/sliding_{backbone}",
        ratio,
        unit="times the bare forwards",
        target=0.95,
        limit=0.84,
        spread=ratio * timings.spread,
        details={
            "seq_len": T,
            "stride": STRIDE,
            "forwards_s": timings.reference,
            "sliding_s": timings.median("sliding"),
        },
    )
