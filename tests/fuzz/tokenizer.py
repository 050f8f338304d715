"""SentencePiece models, as `data.tokenizer.model` names them: pieces and settings that do not agree."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as proto

from jepa_lm.data.corpora import Austen
from jepa_lm.data.tokenizers import SentencePieceBPE
from tests.fuzz.material import Material
from tests.fuzz.mutations import FLOATS, NUMBERS, TEXTS, cut, flipped, junk, spliced

VOCAB = 400
TEXT = "It is a truth universally acknowledged,\n\nthat a \u2581 and  an é\U0001f600 are\ttext.\r\n"
KEPT = (b"\0", b"\n", b" ", b"x" * 70_000)


class Reader:
    """A small model, trained here."""

    allowed = ()

    def __init__(self, material: Material) -> None:
        text = (block.text for block in Austen().blocks("train"))
        spec = SentencePieceBPE(vocab_size=VOCAB, model=None, train_bytes=50_000)
        with tempfile.TemporaryDirectory() as folder:
            spec.build(text, None).save(Path(folder, "model"))
            self.whole = Path(folder, "model").read_bytes()

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        kinds = [
            self.flipped, self.cut, self.spliced, self.piece, self.piece, self.pieces, self.settings,
            self.settings, self.normalizer, self.place,
        ]  # fmt: skip
        kind = kinds[number % len(kinds)]
        return kind.__name__, kind(rng)

    def flipped(self, rng: random.Random) -> bytes:
        return flipped(self.whole, rng, near=rng.choice([60, None]))

    def cut(self, rng: random.Random) -> bytes:
        return cut(self.whole, rng)

    def spliced(self, rng: random.Random) -> bytes:
        return spliced(self.whole, rng)

    def piece(self, rng: random.Random) -> bytes:
        """Some pieces with another text, score or type."""
        model = self._model()
        for _ in range(rng.choice([1, 2, 20])):
            piece = rng.choice(model.pieces)
            change = rng.randrange(4)
            if change == 0:
                piece.piece = _text(rng)
            elif change == 1:
                piece.score = rng.choice(FLOATS)
            elif change == 2:
                piece.type = rng.choice([1, 2, 3, 4, 5, 6])
            else:
                piece.piece = rng.choice(model.pieces).piece
        return model.SerializeToString()

    def pieces(self, rng: random.Random) -> bytes:
        """Fewer or more pieces, in another order, or none."""
        model = self._model()
        pieces = list(model.pieces)
        change = rng.randrange(5)
        if change == 0:
            pieces = pieces[rng.randrange(VOCAB) :]
        elif change == 1:
            rng.shuffle(pieces)
        elif change == 2:
            pieces += [
                proto.ModelProto.SentencePiece(piece=f"x{i}", score=-i) for i in range(70_000)
            ]
        elif change == 3:
            pieces = [piece for piece in pieces if piece.type != rng.choice([1, 2, 3, 6])]
        else:
            pieces = [rng.choice(pieces) for _ in range(VOCAB)]
        del model.pieces[:]
        model.pieces.extend(pieces)
        return model.SerializeToString()

    def settings(self, rng: random.Random) -> bytes:
        """The trainer's settings: ids of control pieces, kind of model, byte fallback."""
        model = self._model()
        spec = model.trainer_spec
        for _ in range(rng.choice([1, 1, 3])):
            field = rng.choice([
                "unk_id", "bos_id", "eos_id", "pad_id", "vocab_size", "model_type", "byte_fallback",
                "unk_piece", "bos_piece", "unk_surface", "treat_whitespace_as_suffix",
                "allow_whitespace_only_pieces",
            ])  # fmt: skip
            if field == "model_type":
                spec.model_type = rng.choice([1, 2, 3, 4])
            elif isinstance(getattr(spec, field), bool):
                setattr(spec, field, not getattr(spec, field))
            elif isinstance(getattr(spec, field), int):
                setattr(spec, field, rng.choice([n for n in NUMBERS if -(2**31) <= n < 2**31]))
            else:
                setattr(spec, field, _text(rng))
        return model.SerializeToString()

    def normalizer(self, rng: random.Random) -> bytes:
        """Rules for the text: names, spaces, and the compiled map, which SentencePiece reads unchecked."""
        model = self._model()
        for spec in rng.sample(
            [model.normalizer_spec, model.denormalizer_spec], rng.choice([1, 2])
        ):
            change = rng.randrange(4)
            if change == 0:
                spec.precompiled_charsmap = rng.randbytes(rng.choice([0, 1, 4, 100, 4096]))
            elif change == 1:
                length = rng.choice([0, 4, 16, 2**31, 2**32 - 1])
                units = rng.randbytes(rng.choice([0, 16, 1024]))
                spec.precompiled_charsmap = length.to_bytes(4, "little") + units + b"x\0\0"
            elif change == 2:
                spec.name = _text(rng)
            else:
                spec.add_dummy_prefix = rng.random() < 0.5
                spec.remove_extra_whitespaces = rng.random() < 0.5
                spec.escape_whitespaces = rng.random() < 0.5
        return model.SerializeToString()

    def place(self, rng: random.Random) -> str | bytes:
        """Something else in the model file's place."""
        other = junk(rng)
        return rng.choice(["folder", "nothing", repr(other).encode(errors="replace"), *KEPT])

    def put(self, mutant: Any, folder: Path) -> None:
        path = folder / "tokenizer.model"
        if isinstance(mutant, bytes):
            path.write_bytes(mutant)
        elif mutant == "folder":
            path.mkdir()

    def read(self, folder: Path) -> str | None:
        spec = SentencePieceBPE(
            vocab_size=VOCAB, model=str(folder / "tokenizer.model"), train_bytes=1000
        )
        tokenizer = spec.build((), None)
        ids = tokenizer.encode(TEXT)
        if len(ids) and int(ids.max()) >= VOCAB:
            return f"gives id {ids.max()} of {VOCAB}"
        if tokenizer.bos_id is not None and not 0 <= tokenizer.bos_id < VOCAB:
            return f"starts documents with id {tokenizer.bos_id} of {VOCAB}"
        tokenizer.decode(range(VOCAB))
        counted = tokenizer.token_bytes().count(np.zeros(len(ids), dtype=int), ids.astype(int))
        return None if (counted >= 0).all() else "a token of less than no bytes"

    def _model(self) -> Any:
        return proto.ModelProto.FromString(self.whole)


def _text(rng: random.Random) -> str:
    """Replace what protobuf cannot hold."""
    return rng.choice(TEXTS).encode(errors="replace").decode()
