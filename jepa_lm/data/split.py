"""A split of text as evaluation reads it: its tokens, the text they stand for, and how they are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.documents import Block
from jepa_lm.data.prepared_folder import SourceText
from jepa_lm.data.rows import Rows, RowWindows
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.data.windows import StandardWindows


@dataclass(frozen=True)
class Split:
    """An opened split.

    Args:
        stream: its tokens. tokenizer: what they were made with.
        seq_len: T, length of its windows. batch_tokens: tokens scored at a time.
        text: size and hash of the text before tokenization, None if unknown.
        blocks: yields that text, None if only tokens are at hand.
        examples: the rows of a split whose rows are examples, which no window crosses; None for text.
    """

    stream: TokenStream
    tokenizer: Tokenizer
    seq_len: int
    batch_tokens: int
    text: SourceText | None
    blocks: Callable[[], Iterator[Block]] | None
    examples: Rows | None = None

    @property
    def rows(self) -> int:
        """Number of windows scored at a time."""
        return max(1, self.batch_tokens // self.seq_len)

    @property
    def floor(self) -> float | None:
        """Nats per token below which no model can be expected to score; None for text."""
        return None if self.examples is None else self.examples.floor

    def floor_of_batches(self, limit: int | float | None, ranks: int) -> float | None:
        """Return the floor of what is scored if each of the ranks scores only its first batches.

        Args:
            limit: how many (int) or which share (float), as Lightning's `limit_val_batches`; None for all.
        """
        if self.examples is None:
            return None
        places, scored = np.arange(len(self.examples.tokens)), []
        batches = [places[i : i + self.rows] for i in range(0, len(places), self.rows)]
        for rank in range(ranks):
            mine = batches[rank::ranks]
            scored += mine[: int(limit * len(mine)) if isinstance(limit, float) else limit]
        return self.examples.floor_of(np.concatenate(scored)) if scored else None

    def windows(self, limit: int | None = None) -> StandardWindows | RowWindows:
        """Return the tokens, or the first `limit` of them, in windows side by side."""
        if self.examples is not None:
            examples = self.examples
            if limit is not None:
                examples = examples.first(max(1, limit // self.seq_len))
            return RowWindows(examples, self.rows)
        return StandardWindows(self.stream, seq_len=self.seq_len, rows=self.rows, limit=limit)

    def byte_counter(self) -> ByteCounter:
        """Return a counter whose sum over the whole split is the number of bytes of its text.

        This is the text before tokenization, if known: a tokenizer that changes the text must not change the
        number that the score is divided by.
        """
        table = self.tokenizer.token_bytes()
        if self.text is None or not self.text.counted:
            return ByteCounter(table)
        return ByteCounter(table, self.text.bytes / self.text.counted)

    def first_bytes(self, limit: int) -> bytes:
        """Return at most the first `limit` bytes of the text; decoded if only tokens are at hand."""
        if self.blocks is None:
            tokens = np.empty(min(self.stream.total, limit), dtype=np.int64)
            self.stream.read(0, tokens)
            return b"".join(decoded_documents(tokens, self.tokenizer))[:limit]
        found = bytearray()
        for block in self.blocks():
            found += block.text.encode()
            if len(found) >= limit:
                break
        return bytes(found[:limit])


def documents(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield the tokens of each document; a BOS starts one."""
    bos = -1 if tokenizer.bos_id is None else tokenizer.bos_id
    starts = np.flatnonzero(tokens == bos).tolist()
    yield from (part for part in np.split(tokens, starts) if len(part))


def decoded_documents(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[bytes]:
    """Yield the text of each document among the tokens."""
    for document in documents(tokens, tokenizer):
        yield tokenizer.decode(document.tolist())
