"""Audit the byte count: decode a split and compare its content.

Wrong tables have made published scores look up to 20 % better, and two errors that cancel can leave the total
right. So the table is compared with each document and each token, and the text with its source.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from jepa_lm.data.prepared_folder import SourceText
from jepa_lm.data.split import documents
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import TokenBytes, Tokenizer

NO_TEXT = "\ufffd".encode()
"""Character that a decoder writes for an incomplete character."""


@dataclass(frozen=True)
class ByteAudit:
    """Result of comparing a split's byte count with its decoded text.

    Args:
        table: bytes by the table. decoded: bytes of the decoded text.
        matches: True if the table is right for each document and each token.
        source: the text before tokenization, if known. lossless: True if the decoded text equals it.
    """

    table: int
    decoded: int
    matches: bool
    source: SourceText | None
    lossless: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "table_bytes": self.table,
            "decoded_bytes": self.decoded,
            "source_bytes": None if self.source is None else self.source.bytes,
            "matches": self.matches,
            "lossless": self.lossless,
        }


def audit_bytes(stream: TokenStream, tokenizer: Tokenizer, source: SourceText | None) -> ByteAudit:
    """Count a split's bytes by the table and by decoding it.

    Every token except the first is a target. Without BOS, the first token is text but not a target; its bytes
    are counted on both sides, so that the whole text is compared.
    """
    tokens = np.empty(stream.total, dtype=np.int64)
    stream.read(0, tokens)
    table = tokenizer.token_bytes()
    counts = np.concatenate((table.base[tokens[:1]], table.count(tokens[:-1], tokens[1:])))
    matches, decoded, at, text_hash = True, 0, 0, hashlib.sha256()
    for document in documents(tokens, tokenizer):
        text, end = tokenizer.decode(document.tolist()), at + len(document)
        matches &= len(text) == counts[at:end].sum()
        at = end
        decoded += len(text)
        text_hash.update(text)
    return ByteAudit(
        table=int(counts.sum()),
        decoded=decoded,
        matches=bool(matches) and not wrong_tokens(np.unique(tokens), tokenizer, table),
        source=source,
        lossless=None if source is None else text_hash.hexdigest() == source.sha256,
    )


def wrong_tokens(ids: np.ndarray, tokenizer: Tokenizer, table: TokenBytes) -> list[int]:
    """Return the token ids whose length in the table differs from their decoded length after another token.

    Tokens that are only part of a character are skipped; the comparison of documents covers them.
    """
    texts = ((int(i), tokenizer.decode([int(i)])) for i in ids)
    before = next((i for i, text in texts if text.strip() and NO_TEXT not in text), None)
    if before is None:
        return []
    start, wrong = tokenizer.decode([before]), []
    for i in map(int, ids):
        pair = tokenizer.decode([before, i])
        counted = int(table.count(np.array([before]), np.array([i]))[0])
        if NO_TEXT not in pair and len(pair) - len(start) != counted:
            wrong.append(i)
    return wrong
