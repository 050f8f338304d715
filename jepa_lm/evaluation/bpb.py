"""Bits per byte: total nats / ln 2 / total bytes of the text.

If the text before tokenization is known, a whole split is divided by exactly its bytes.
Legend: B windows, T inputs, S scored targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel, token_nll


@dataclass(frozen=True)
class Score:
    """The score of a split: mean nats per token, bits per byte, and the number of tokens and bytes.

    What is not text has no bytes, and `bpb` is None.
    """

    nll: float
    bpb: float | None
    tokens: int
    bytes: int

    @property
    def value(self) -> float:
        """Bits per byte, or nats per token of what has no bytes: the lower, the better."""
        return self.nll if self.bpb is None else self.bpb

    def in_words(self) -> str:
        """Return the score for a line of text."""
        if self.bpb is None:
            return f"{self.nll:.4f} nats per token"
        return f"{self.bpb:.4f} bits per byte ({self.nll:.4f} nats per token)"

    def as_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON."""
        return asdict(self)


def unit_and_value(score: Mapping[str, Any]) -> tuple[str, float]:
    """Return what a score `as_dict` is best told in, and its value there."""
    if score["bpb"] is None:
        return "nats per token", float(score["nll"])
    return "bits per byte", float(score["bpb"])


class BPBMeter(nn.Module):
    """Sums of nats, targets and bytes in the [3] tensor `sums`, float64, on the model's device."""

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)

    def reset(self) -> None:
        """Set the sums to zero."""
        self.sums.zero_()

    def update(self, nll: Tensor, byte_counts: Tensor, answers: Tensor | None = None) -> None:
        """Add the targets of a batch, or only those that count; all [B, T]."""
        if answers is not None:
            nll, byte_counts = nll[answers], byte_counts[answers]
        self.sums[0] += nll.sum(dtype=torch.float64)
        self.sums[1] += nll.numel()
        self.sums[2] += byte_counts.sum()

    def score(self) -> Score:
        """Return the score so far; one host sync."""
        return score_from_sums(*self.sums.tolist())


def score_from_sums(nats: float, tokens: float, n_bytes: float) -> Score:
    """Return the score for total nats, targets and bytes."""
    bpb = nats / math.log(2) / n_bytes if n_bytes else None
    return Score(nll=nats / max(tokens, 1), bpb=bpb, tokens=int(tokens), bytes=round(n_bytes))


def target_bytes(batch: Batch, byte_counter: ByteCounter) -> Tensor:
    """Return the bytes of each target [B, S] of a batch."""
    targets = batch["targets"]
    return byte_counter(batch["inputs"][:, -targets.shape[1] :], targets)


def window_nll(
    model: LanguageModel, inputs: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the nats of each target [B, S] after its inputs [B, T]: no auxiliary loss, no z-loss.

    If S is less than T, the last S positions are scored, and the last block and the head run only on them.
    """
    scored = targets.shape[1]
    if scored == inputs.shape[1]:
        logits, _ = model(inputs)
    else:
        logits = model.logits(model.tail(inputs, scored))
    if temperature != 1.0:
        logits = logits / temperature
    return token_nll(logits, targets)
