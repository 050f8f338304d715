"""Bits per byte: total nats / ln 2 / total bytes of the text, and the audit of the byte count.

A token table says how many bytes each target stands for (`TokenBytes`); the audit decodes the
split and compares, because wrong tables have made published scores look up to 20 % better.
Legend: B windows, T targets, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from jepa_lm.data.stream import Batch, TokenStream
from jepa_lm.data.tokenizers import TokenBytes, Tokenizer
from jepa_lm.model import LanguageModel, token_nll


class ByteCounter(nn.Module):
    """`TokenBytes` as tensors that follow the model to its device and stay out of checkpoints."""

    base: Tensor
    leading_space: Tensor
    boundary: Tensor

    def __init__(self, table: TokenBytes) -> None:
        super().__init__()
        for name in ("base", "leading_space", "boundary"):
            self.register_buffer(name, torch.from_numpy(getattr(table, name)), persistent=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Bytes of each target, int64; inputs are the tokens before them, both [B, T]."""
        space = self.leading_space[targets] & ~self.boundary[inputs]
        return self.base[targets] + space


@dataclass(frozen=True)
class Score:
    """The score of a text: mean nats per token, bits per byte, and what they were summed over."""

    nll: float
    bpb: float
    tokens: int
    bytes: int

    def as_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


class BPBMeter(nn.Module):
    """Sums nats, targets and bytes in float64 on the model's device; [3] tensor `sums`."""

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)

    def reset(self) -> None:
        """Start over."""
        self.sums.zero_()

    def update(self, nll: Tensor, byte_counts: Tensor) -> None:
        """Add the targets of a batch; both [B, T]."""
        self.sums[0] += nll.sum(dtype=torch.float64)
        self.sums[1] += nll.numel()
        self.sums[2] += byte_counts.sum()

    def score(self) -> Score:
        """The score so far; one host sync."""
        return score_from_sums(*self.sums.tolist())


def score_from_sums(nats: float, tokens: float, n_bytes: float) -> Score:
    """A score from total nats, targets and bytes."""
    bpb = nats / math.log(2) / n_bytes if n_bytes else math.nan
    return Score(nll=nats / max(tokens, 1), bpb=bpb, tokens=int(tokens), bytes=int(n_bytes))


def score_batch(
    model: LanguageModel,
    batch: Batch,
    byte_counter: ByteCounter,
    meter: BPBMeter,
    temperature: float = 1.0,
) -> None:
    """Score a batch of windows with plain cross entropy: no auxiliary loss, no z-loss.

    Where `targets` [B, S] is narrower than `inputs` [B, T], the last S positions are scored, and the
    last block and the head run on those alone.
    """
    inputs, targets = batch["inputs"], batch["targets"]
    scored = targets.shape[1]
    if scored == inputs.shape[1]:
        logits, _ = model(inputs)
    else:
        logits = model.logits(model.tail(inputs, scored))
    if temperature != 1.0:
        logits = logits / temperature
    meter.update(token_nll(logits, targets), byte_counter(inputs[:, -scored:], targets))


@dataclass(frozen=True)
class ByteAudit:
    """Bytes by the table and bytes of the decoded text; `source` is the text before tokenization."""

    table: int
    decoded: int
    source: int | None

    @property
    def matches(self) -> bool:
        """The table tells the truth about the decoded text."""
        return self.table == self.decoded

    @property
    def lossless(self) -> bool | None:
        """The tokenizer kept every byte; None when the source is not at hand."""
        return None if self.source is None else self.decoded == self.source


def decoded_documents(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of each document among the tokens; a BOS starts one."""
    starts = [] if tokenizer.bos_id is None else np.flatnonzero(tokens == tokenizer.bos_id).tolist()
    for a, b in pairwise(sorted({0, *starts, len(tokens)})):
        yield tokenizer.decode(tokens[a:b].tolist())


def audit_bytes(stream: TokenStream, tokenizer: Tokenizer, source: int | None) -> ByteAudit:
    """Count a split's bytes by table and by really decoding it, document by document.

    Every token but the first is a target. Without BOS the first token is text that no target
    stands for; its bytes are counted on both sides, so that the text is compared whole.
    """
    tokens = np.empty(stream.total, dtype=np.int64)
    stream.read(0, tokens)
    table = tokenizer.token_bytes()
    counted = int(table.count(tokens[:-1], tokens[1:]).sum()) + int(table.base[tokens[0]])
    decoded = sum(len(text) for text in decoded_documents(tokens, tokenizer))
    return ByteAudit(table=counted, decoded=decoded, source=source)
