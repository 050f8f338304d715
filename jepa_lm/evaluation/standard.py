"""Score a model on a whole split, outside of training."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track

from jepa_lm.data.stream import Batch
from jepa_lm.evaluation.bpb import BPBMeter, ByteCounter, Score, score_batch
from jepa_lm.model import LanguageModel
from jepa_lm.precision import AUTOCAST


@dataclass(frozen=True)
class Evaluation:
    """A score and the seconds it took."""

    score: Score
    seconds: float


@torch.inference_mode()
def evaluate_windows(
    model: LanguageModel,
    windows: torch.utils.data.Dataset[Batch],
    byte_counter: ByteCounter,
    *,
    device: torch.device,
    precision: str,
) -> Evaluation:
    """Score every window.

    Args:
        windows: batches of windows, sized. precision: Lightning's name, as in training.
    """
    began = time.perf_counter()
    model = model.to(device).eval()
    byte_counter, meter = byte_counter.to(device), BPBMeter().to(device)
    dtype = AUTOCAST[precision]
    batches = track(
        range(len(windows)),  # type: ignore[arg-type]
        description="evaluating",
        console=Console(stderr=True),
        transient=True,
    )
    for i in batches:
        batch = {name: t.to(device) for name, t in windows[i].items()}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            score_batch(model, batch, byte_counter, meter)
    return Evaluation(meter.score(), time.perf_counter() - began)
