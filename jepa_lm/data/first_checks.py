"""Checks of the data's settings that need no PyTorch, before it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa_lm.data.corpora import Austen, TextFiles
from jepa_lm.data.tokenizers import SentencePieceBPE
from jepa_lm.utils.config import build
from jepa_lm.utils.errors import UserError

LEAST_PIECES = 256 + 3 + 1
"""Pieces of a trained tokenizer: one for each byte, three for control, and the characters of the text."""


def check_text(data: Mapping[str, Any]) -> None:
    """Check the user's text, and the size of a tokenizer that must be trained.

    Args:
        data: the node `data`, which has passed `config.check`.

    Raises:
        UserError: there is no such text, its first document cannot be read, or the tokenizer is too small.
    """
    corpus, tokenizer = data.get("corpus"), data.get("tokenizer")
    if not isinstance(corpus, Mapping) or not isinstance(tokenizer, Mapping):
        return  # a user's own class, with other settings
    if not _makes(corpus, TextFiles) and not _makes(corpus, Austen):
        return
    build("data", corpus)  # its messages start with its keys, such as data.path
    trained = _makes(tokenizer, SentencePieceBPE) and tokenizer["model"] is None
    if trained and tokenizer["vocab_size"] < LEAST_PIECES:
        raise UserError(
            f"data.tokenizer.vocab_size={tokenizer['vocab_size']}: at least {LEAST_PIECES}: one for each "
            "byte, 3 for control, and one for each character of the text (400 is enough for plain English); "
            "data=byte260 needs no tokenizer"
        )


def _makes(node: Mapping[str, Any], target: type) -> bool:
    return node.get("_target_") == f"{target.__module__}.{target.__qualname__}"
