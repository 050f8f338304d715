"""Bits per byte: total nats / ln 2 / total bytes of the text.

If the text before tokenization is known, a whole split is divided by exactly its bytes.
Legend: B windows, T inputs, S scored targets.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import Batch
from jepa_lm.model import LanguageModel, token_nll


@dataclass(frozen=True)
class Score:
    """The score of a text: mean nats per token, bits per byte, and the number of tokens and bytes."""

    nll: float
    bpb: float
    tokens: int
    bytes: int

    def as_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return asdict(self)


class BPBMeter(nn.Module):
    """Sums of nats, targets and bytes in the [3] tensor `sums`, float64, on the model's device."""

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)

    def reset(self) -> None:
        """Set the sums to zero."""
        self.sums.zero_()

    def update(self, nll: Tensor, byte_counts: Tensor) -> None:
        """Add the targets of a batch; both [B, T]."""
        self.sums[0] += nll.sum(dtype=torch.float64)
        self.sums[1] += nll.numel()
        self.sums[2] += byte_counts.sum()

    def score(self) -> Score:
        """Return the score so far; one host sync."""
        return score_from_sums(*self.sums.tolist())


def score_from_sums(nats: float, tokens: float, n_bytes: float) -> Score:
    """Return the score for total nats, targets and bytes."""
    bpb = nats / math.log(2) / n_bytes if n_bytes else math.nan
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
