"""Documents that come in blocks, cut anew so that their ids are those of the whole documents.

A file is read in blocks for the sake of memory, and where a block ends says nothing about the text. A
tokenizer looks across that place: it joins characters, normalises runs of spaces, marks the start of a
document. So a document is cut only where its tokenizer says that it makes no difference, and otherwise read
whole, up to a size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.utils.errors import UserError

PIECE = 1 << 20
"""Characters that are encoded at a time, where that is free."""
MOST_WHOLE = 1 << 24
"""Characters of a document that is encoded in one call; SentencePiece takes some 50 bytes for each."""


class Block(NamedTuple):
    """A piece of text; `starts_document` where a new document begins."""

    text: str
    starts_document: bool


def recut(blocks: Iterable[Block], tokenizer: Tokenizer) -> Iterator[Block]:
    """The same documents, cut so that blocks can be encoded one by one.

    Raises:
        UserError: a document that has to be encoded whole, and is too large for that.
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
                    "data.tokenizer: this tokenizer takes a document whole, and one has more than "
                    f"{MOST_WHOLE} characters; cut the text into documents (a .jsonl, one on each line), or "
                    "train the tokenizer here (data.tokenizer.model=null)"
                )
    if held or starts:
        yield Block(held, starts)
