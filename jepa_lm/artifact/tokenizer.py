"""The tokenizer of a model: inside its artifact, in a file beside it, or in its run's data.

A tokenizer is known by its fingerprint, which every checkpoint and artifact records; a file with any other
fingerprint is not it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from jepa_lm.data.sentencepiece_check import MOST_BYTES, checked_tokenizer
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import TOKENIZER_FILE

INSIDE, BESIDE, NONE = "inside", "beside", "none"
PLACES = (INSIDE, BESIDE, NONE)


def own_tokenizer(
    fingerprint: str, vocab_size: int, inside: bytes | None, source: Path
) -> Tokenizer | None:
    """Return a model's tokenizer without its data, or None if it is not at hand.

    Args:
        fingerprint, vocab_size: of the tokenizer that the model was trained with.
        inside: serialized tokenizer that came with the model. source: the model's file.

    Raises:
        UserError: the tokenizer is damaged.
    """
    for size in (256, 260):
        if fingerprint == ByteTokenizer(vocab_size=size).fingerprint:
            return ByteTokenizer(vocab_size=size)
    for model in (inside, *_beside(source)):
        if model is not None and hashlib.sha256(model).hexdigest() == fingerprint:
            return checked_tokenizer(model, vocab_size, str(source))
    return None


def _beside(source: Path) -> Iterator[bytes]:
    """Yield the tokenizers beside a model's file, and in the run's folder above `checkpoints`."""
    for folder in (source.parent, source.parent.parent):
        path = folder / TOKENIZER_FILE
        try:
            if path.stat().st_size <= MOST_BYTES:
                yield path.read_bytes()
        except OSError:
            continue


def serialized(tokenizer: Tokenizer) -> bytes | None:
    """Return what an artifact stores of a tokenizer; None for bytes, which need nothing.

    Raises:
        UserError: a tokenizer of one's own, which no file can hold.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return None
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.model
    raise UserError(
        f"export.tokenizer: a {type(tokenizer).__name__} cannot be stored; choose export.tokenizer=none"
    )
