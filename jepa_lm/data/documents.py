"""Recut documents that come in blocks, so that their ids are those of the whole documents.

A file is read in blocks to save memory, and where a block ends says nothing about the text. A tokenizer looks
across that place: it joins characters, normalises runs of spaces, marks the start of a document. So a
document is cut only where its tokenizer says that the cut makes no difference; otherwise it is read whole, up
to a size limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.utils.errors import UserError

PIECE = 1 << 20
"""Characters encoded at a time, where the tokenizer allows a cut."""
MOST_WHOLE = 1 << 24
"""Most characters of a document encoded in one call; SentencePiece needs about 50 bytes for each."""


class Block(NamedTuple):
    """A piece of text; `starts_document` is true if a new document begins with it."""

    text: str
    starts_document: bool


def recut(blocks: Iterable[Block], tokenizer: Tokenizer) -> Iterator[Block]:
    """Yield the same documents, cut so that blocks can be encoded one by one.

    Raises:
        UserError: a document must be encoded whole and is too large for that.
    """
    held, starts = "", False
    for block in blocks:
        if block.starts_document:
            if held or starts:
                yield Block(held, starts)
            held, starts = "", True
        searched = len(held)
        for at in range(0, len(block.text), PIECE):
            held += block.text[at : at + PIECE]
            cut = tokenizer.safe_cut(held, searched)
            if cut:
                yield Block(held[:cut], starts)
                held, starts = held[cut:], False
            searched = len(held)
            if searched > MOST_WHOLE:
                raise UserError(
                    "data.tokenizer: this tokenizer must encode a document whole, and one has more than "
                    f"{MOST_WHOLE} characters; split the text into documents (a .jsonl file, one per line), "
                    "or train the tokenizer here (data.tokenizer.model=null)"
                )
    if held or starts:
        yield Block(held, starts)
