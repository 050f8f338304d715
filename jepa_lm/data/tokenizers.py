"""Convert text to token ids and back, byte for byte.

There are two families: SentencePiece BPE (trained here, or a given .model file) and raw bytes. A tokenizer
also knows how many bytes of text each token represents; see `TokenBytes`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import sentencepiece

from jepa_lm.data.sentencepiece_model import model_settings
from jepa_lm.data.shards import MAX_VOCAB
from jepa_lm.data.tokenizer_training import train_bpe
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import write_bytes
from jepa_lm.utils.kinds import Count, Range, checked

SPACE = "\u2581"
"""SentencePiece writes a space as this character, so a literal one in the text needs special treatment."""
MOST_MODEL = 1 << 26
"""Largest .model file that is read, in bytes; one with 65,536 pieces has about 1 MB."""


@dataclass(frozen=True)
class TokenBytes:
    """Bytes of text per token, as three arrays of length V.

    A token counts base[token], plus one for its leading space if leading_space[token] is true and the token
    before it is not a boundary (a decoder drops the space that starts a document).
    """

    base: np.ndarray
    leading_space: np.ndarray
    boundary: np.ndarray

    def count(self, previous: np.ndarray, current: np.ndarray) -> np.ndarray:
        """Return the bytes of each current token, given the one before; both are int arrays of one shape."""
        return self.base[current] + (self.leading_space[current] & ~self.boundary[previous])


class Tokenizer(Protocol):
    """The interface that data preparation, evaluation and generation need."""

    vocab_size: int
    bos_id: int | None
    fingerprint: str
    """Tokenizers with equal fingerprints give equal ids."""

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text, without BOS."""
        ...

    def safe_cut(self, text: str, first: int) -> int:
        """Return the last place, at `first` or after, where a cut leaves the ids of the text unchanged.

        Return 0 if no place is certain.
        """
        ...

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that the ids of one document represent; control tokens give none."""
        ...

    def token_bytes(self) -> TokenBytes:
        """Return the table for bits per byte."""
        ...

    def save(self, path: Path) -> None:
        """Write what a later run needs to rebuild the same tokenizer."""
        ...


class ByteTokenizer:
    """One token per byte: byte256 (id = byte) or byte260 (PAD, BOS, EOS and UNK, then id = byte + 4).

    Args:
        vocab_size: 256 or 260.
    """

    @checked
    def __init__(self, *, vocab_size: Annotated[int, Literal[256, 260]]) -> None:
        self.vocab_size = vocab_size
        self._offset = vocab_size - 256
        self.bos_id = 1 if self._offset else None
        self.fingerprint = f"byte{vocab_size}"

    def build(self, train_text: Iterable[str], published: Path | None) -> ByteTokenizer:
        """Return this tokenizer; it needs no training."""
        return self

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) + self._offset

    def safe_cut(self, text: str, first: int) -> int:
        """Return the end of the text: bytes do not depend on their neighbours."""
        return len(text)

    def save(self, path: Path) -> None:
        """Write nothing: a byte tokenizer has no data of its own."""

    def decode(self, ids: Sequence[int]) -> bytes:
        array = np.asarray(ids, dtype=np.int64) - self._offset
        return array[array >= 0].astype(np.uint8).tobytes()

    def token_bytes(self) -> TokenBytes:
        base = np.ones(self.vocab_size, dtype=np.int64)
        base[: self._offset] = 0
        return TokenBytes(base, base < 0, base == 0)


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
        model: the serialized model.
        vocab_size: number of pieces that the model must have.
        source: where the model came from, for messages.

    Raises:
        UserError: not a SentencePiece model, or a model of another size.
    """

    def __init__(self, model: bytes, *, vocab_size: int, source: str) -> None:
        damaged = UserError(f"data.tokenizer: {source} is not a SentencePiece model, or is damaged")
        if not model:  # the library accepts it and waits for a model to be loaded later
            raise damaged
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError, ValueError) as error:
            raise damaged from error
        found = self._pieces.get_piece_size()
        if found != vocab_size:
            raise UserError(
                f"data.tokenizer.vocab_size={vocab_size}: {source} has {found} pieces; set "
                f"data.tokenizer.vocab_size={found} or choose another tokenizer"
            )
        try:  # pieces that are not text would fail later
            pieces = [self._pieces.id_to_piece(i) for i in range(found)]
            self._pieces.decode([self._pieces.unk_id()])
            settings = model_settings(model)
        except (RuntimeError, ValueError, IndexError) as error:
            raise damaged from error
        self.vocab_size, self.model = vocab_size, model
        bos = self._pieces.bos_id()
        self.bos_id = bos if bos >= 0 else None
        self.fingerprint = hashlib.sha256(model).hexdigest()
        # A dummy prefix is a space that the model adds to a document and the decoder drops again.
        first = self._pieces.encode("a", out_type=str)
        self._dummy_prefix = bool(first) and first[0].startswith(SPACE)
        self._space_ids = [self._pieces.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        self._byte_fallback = self._pieces.is_byte(self._space_ids[0])
        self._spells_spaces = settings.keeps_text and self._byte_fallback
        self._neighbours: set[str] | None = None
        """Pairs of neighbouring characters within pieces; None if text must not be cut at all."""
        # A merge never joins what no piece joins. An unused piece is split again at its last merge.
        merges = settings.bpe and not any(map(self._pieces.is_unused, range(found)))
        if merges and settings.keeps_text:
            spelled = (piece.replace(" ", SPACE) for piece in pieces)
            self._neighbours = {p[i : i + 2] for p in spelled for i in range(len(p) - 1)}

    def encode(self, text: str) -> np.ndarray:
        if SPACE not in text or not self._spells_spaces:
            return np.asarray(self._pieces.encode(text), dtype=np.uint16)
        # A literal U+2581 would be decoded as a space: write it in byte tokens.
        parts = [self._pieces.encode(part) for part in text.split(SPACE)]
        ids = parts[0]
        for part in parts[1:]:
            ids += self._space_ids + part
        return np.asarray(ids, dtype=np.uint16)

    def safe_cut(self, text: str, first: int) -> int:
        if self._neighbours is None:
            return 0
        places = range(len(text) - 1, max(first, 1) - 1, -1)
        return next((i for i in places if self._may_cut(text[i - 1 : i + 1])), 0)

    def _may_cut(self, pair: str) -> bool:
        assert self._neighbours is not None
        pair = pair.replace(" ", SPACE)
        if pair in self._neighbours:
            return False
        # Without byte tokens, consecutive unknown characters are one token.
        known = (self._pieces.piece_to_id(character) != self._pieces.unk_id() for character in pair)
        return self._byte_fallback or any(known)

    def save(self, path: Path) -> None:
        """Write the .model file."""
        write_bytes(path, self.model)

    def decode(self, ids: Sequence[int]) -> bytes:
        return self._pieces.decode([int(i) for i in ids]).encode()

    def token_bytes(self) -> TokenBytes:
        pieces = self._pieces
        base = np.zeros(self.vocab_size, dtype=np.int64)
        leading_space = np.zeros(self.vocab_size, dtype=bool)
        boundary = np.zeros(self.vocab_size, dtype=bool)
        for i in range(self.vocab_size):
            if pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i):
                boundary[i] = True
            elif pieces.is_byte(i):
                base[i] = 1
            else:
                piece = pieces.id_to_piece(i)
                leading_space[i] = piece.startswith(SPACE)
                base[i] = len(piece.removeprefix(SPACE).replace(SPACE, " ").encode())
        if not self._dummy_prefix:
            # Then every space is text, also the one that starts a document.
            base += leading_space
            leading_space[:] = False
        return TokenBytes(base, leading_space, boundary)


class SentencePieceBPE:
    """Builds a SentencePiece tokenizer: from a file, from the corpus, or by training one.

    A trained one is lossless: identity normalisation, byte fallback, no dummy prefix.

    Args:
        vocab_size: number of pieces.
        model: path of a .model file. None for the corpus's published tokenizer or, if it has none, for one
            trained on the training text.
        train_bytes: most bytes of training text that the trainer reads.
    """

    @checked
    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Range(least=1, most=MAX_VOCAB)],
        model: str | None,
        train_bytes: Count,
    ) -> None:
        self.vocab_size, self.model, self.train_bytes = vocab_size, model, train_bytes

    def build(self, train_text: Iterable[str], published: Path | None) -> SentencePieceTokenizer:
        """Return the tokenizer; `train_text` is read only if it must be trained."""
        path = Path(os.path.expanduser(self.model)) if self.model is not None else published
        if path is None:
            model = train_bpe(train_text, vocab_size=self.vocab_size, train_bytes=self.train_bytes)
            return SentencePieceTokenizer(
                model, vocab_size=self.vocab_size, source="the trained tokenizer"
            )
        if not os.path.isfile(path):
            raise UserError(f"data.tokenizer.model={path}: no such file; expected a .model file")
        with open(path, "rb") as file:
            model = file.read(MOST_MODEL + 1)
        if len(model) > MOST_MODEL:
            raise UserError(
                f"data.tokenizer.model={path}: more than {MOST_MODEL} bytes, which no SentencePiece model has"
            )
        return SentencePieceTokenizer(model, vocab_size=self.vocab_size, source=str(path))


class GivenTokenizer:
    """Stands where a tokenizer would be built or trained, for one that exists already."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size

    def build(self, train_text: Iterable[str], published: Path | None) -> Tokenizer:
        """Return the tokenizer."""
        return self.tokenizer


class TokenizerSource(Protocol):
    """What gives the tokenizer of the data: a given one, or one that is trained on the text."""

    vocab_size: int

    def build(self, train_text: Iterable[str], published: Path | None) -> Tokenizer:
        """Return the tokenizer.

        Args:
            train_text: text to train one on. published: a model file that came with the data.
        """
        ...
