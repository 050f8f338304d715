"""Tokens that are no text: symbols with names, which stand for no bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from jepa_lm.data.shards import MAX_VOCAB
from jepa_lm.data.tokenizers import TokenBytes
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Range, checked


class Symbols:
    """One token per symbol; a text is their names with spaces between.

    No token has bytes, so scores are in nats per token, and there are no bits per byte.

    Args:
        vocab_size: number of symbols.
    """

    @checked
    def __init__(self, *, vocab_size: Annotated[int, Range(least=2, most=MAX_VOCAB)]) -> None:
        self.vocab_size = vocab_size
        self.bos_id: int | None = None
        self.named([str(symbol) for symbol in range(vocab_size)])

    def named(self, names: Sequence[str]) -> None:
        """Give the symbols the names that their source has for them."""
        self.names = list(names)
        self.fingerprint = f"symbols-{hashlib.sha256(' '.join(names).encode()).hexdigest()}"

    def build(self, train_text: Iterable[str], published: Path | None) -> Symbols:
        """Return these symbols; they need no training."""
        return self

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of the names in a text.

        Raises:
            UserError: a word is no symbol.
        """
        known = {name: i for i, name in enumerate(self.names)}
        words = text.split()
        for word in words:
            if word not in known:
                shown = " ".join(self.names[:20]) + (" ..." if len(self.names) > 20 else "")
                raise UserError(f"{word[:40]!r} is no symbol of this data, which are {shown}")
        return np.array([known[word] for word in words], dtype=np.uint16)

    def safe_cut(self, text: str, first: int) -> int:
        """Return the last space after `first`, or 0."""
        at = text.rfind(" ", first)
        return max(0, at)

    def save(self, path: Path) -> None:
        """Write nothing: the data names its symbols."""

    def decode(self, ids: Sequence[int]) -> bytes:
        return "".join(f"{self.names[i]} " for i in ids).encode()

    def token_bytes(self) -> TokenBytes:
        none = np.zeros(self.vocab_size, dtype=np.int64)
        return TokenBytes(none, none > 0, none > 0)
