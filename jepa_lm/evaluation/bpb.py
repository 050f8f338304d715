"""Bits per byte: total nats / ln 2 / total bytes of the text.

If the text before tokenization is known, a whole split is divided by exactly its bytes.
Legend: B windows, T inputs, S scored targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel, token_nll


@dataclass(frozen=True)
class Score:
    """The score of a split: mean nats per token, bits per byte, and the number of tokens and bytes.

    What is not text has no bytes, and `bpb` is None. `others` are figures by name of rows that ask something:
    `answer_accuracy`, and what `jepa_lm.evaluation.tasks` measures. All but a margin are shares of 1.
    """

    nll: float
    bpb: float | None
    tokens: int
    bytes: int
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Bits per byte, or nats per token of what has no bytes: the lower, the better."""
        return self.nll if self.bpb is None else self.bpb

    def of(self, metric: str | None) -> float:
        """Return a metric that the score has, such as `val/solved`; None for `value`."""
        found = self.value if metric is None else self.as_dict()[metric.removeprefix("val/")]
        assert found is not None
        return found

    def in_words(self) -> str:
        """Return the score for a line of text."""
        if self.bpb is None:
            return f"{self.nll:.4f} nats per token"
        return f"{self.bpb:.4f} bits per byte ({self.nll:.4f} nats per token)"

    def as_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON."""
        loss = {"nll": self.nll, "bpb": self.bpb, "tokens": self.tokens, "bytes": self.bytes}
        return {**loss, **self.others}


def unit_and_value(score: Mapping[str, Any]) -> tuple[str, float]:
    """Return what a score `as_dict` is best told in, and its value there."""
    if score["bpb"] is None:
        return "nats per token", float(score["nll"])
    return "bits per byte", float(score["bpb"])


class BPBMeter(nn.Module):
    """Sums of nats, targets and bytes in the tensor `sums`, float64, on the model's device.

    Args:
        hits: add a fourth sum, of the targets that the model finds likeliest.
    """

    sums: Tensor

    def __init__(self, hits: bool = False) -> None:
        super().__init__()
        sums = torch.zeros(4 if hits else 3, dtype=torch.float64)
        self.register_buffer("sums", sums, persistent=False)

    def reset(self) -> None:
        """Set the sums to zero."""
        self.sums.zero_()

    def update(
        self,
        nll: Tensor,
        byte_counts: Tensor,
        answers: Tensor | None = None,
        hits: Tensor | None = None,
    ) -> None:
        """Add the targets of a batch, or only those that count; all [B, T].

        Args:
            hits: which targets are the likeliest tokens, if the meter counts them.
        """
        counted = (...,) if answers is None else answers
        nll = nll[counted]
        self.sums[0] += nll.sum(dtype=torch.float64)
        self.sums[1] += nll.numel()
        self.sums[2] += byte_counts[counted].sum()
        if hits is not None:
            self.sums[3] += hits[counted].sum()

    def score(self) -> Score:
        """Return the score so far; one host sync."""
        return score_from_sums(*self.sums.tolist())


def score_from_sums(nats: float, tokens: float, n_bytes: float, hits: float | None = None) -> Score:
    """Return the score for total nats, targets, bytes and, if they were counted, hits."""
    bpb = nats / math.log(2) / n_bytes if n_bytes else None
    others = {} if hits is None else {"answer_accuracy": hits / max(tokens, 1)}
    return Score(nats / max(tokens, 1), bpb, int(tokens), round(n_bytes), others)


def target_bytes(batch: Batch, byte_counter: ByteCounter) -> Tensor:
    """Return the bytes of each target [B, S] of a batch."""
    targets = batch["targets"]
    return byte_counter(batch["inputs"][:, -targets.shape[1] :], targets)


def window_scores(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    hits: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the nats of each target [B, S] after its inputs [B, T]: no auxiliary loss, no z-loss.

    If S is less than T, the last S positions are scored, and the last block and the head run only on them.

    Args:
        hits: also return whether each target is the likeliest token [B, S].
    """
    scored = targets.shape[1]
    if scored == inputs.shape[1]:
        logits, _ = model(inputs)
    else:
        logits = model.logits(model.tail(inputs, scored))
    if temperature != 1.0:
        logits = logits / temperature
    return token_nll(logits, targets), logits.argmax(-1) == targets if hits else None
