"""Tokenizers that tests train."""

from __future__ import annotations

import io

import sentencepiece

from jepa_lm.data.corpora import Austen


def published_bpe() -> bytes:
    """Train a tokenizer like the challenge's: normalising, with a dummy prefix."""
    out = io.BytesIO()
    text = (b.text for b in Austen().blocks("train"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for t in text for line in t.split("\n") if line),
        model_writer=out,
        model_type="bpe",
        vocab_size=1024,
        byte_fallback=True,
        minloglevel=2,
    )
    return out.getvalue()
