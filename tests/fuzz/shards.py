"""Shard files in a user's own folder: headers, lengths and ids that do not fit together."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

from jepa_lm.data.corpora import FineWeb
from jepa_lm.data.prepare import prepare
from jepa_lm.data.shards import HEADER_BYTES, MAGIC
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import ByteTokenizer
from tests.fuzz.material import Material
from tests.fuzz.mutations import NUMBERS, cut, flipped, spliced

TRAIN, VAL = "fineweb_train_000000.bin", "fineweb_val_000000.bin"
SPECIAL = 4


class Reader:
    """Two shards, one of which is a mutant."""

    allowed = ()

    def __init__(self, material: Material) -> None:
        ids = np.random.default_rng(1).integers(SPECIAL, 260, 3000)
        self.whole = shard(ids)

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        kinds = [
            self.flipped,
            self.header,
            self.header,
            self.length,
            self.ids,
            self.spliced,
            self.place,
        ]
        kind = kinds[number % len(kinds)]
        return kind.__name__, (kind(rng), rng.choice([TRAIN, VAL]), rng.choice([0, SPECIAL]))

    def flipped(self, rng: random.Random) -> bytes:
        return flipped(self.whole, rng, near=rng.choice([12, HEADER_BYTES, None]))

    def header(self, rng: random.Random) -> bytes:
        words = list(struct.unpack("<3i", self.whole[:12]))
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = rng.choice([*NUMBERS[:9], MAGIC, 2999, 3001, -3000, 2**31 - 1])
            words[rng.randrange(3)] = (value + 2**31) % 2**32 - 2**31
        return struct.pack("<3i", *words) + self.whole[12:]

    def length(self, rng: random.Random) -> bytes:
        """Cut or longer, with a header that matches the length or does not."""
        tokens = rng.choice([0, 1, 2, 5, 2999])
        body = self.whole[HEADER_BYTES : HEADER_BYTES + 2 * tokens]
        told = struct.pack("<3i", MAGIC, 1, rng.choice([tokens, tokens, tokens + 1, 3000]))
        data = told + self.whole[12:HEADER_BYTES] + body
        return rng.choice([data, data + rng.randbytes(rng.randrange(4)), cut(self.whole, rng)])

    def ids(self, rng: random.Random) -> bytes:
        """Ids beyond the vocabulary, or only special ones."""
        ids = np.random.default_rng(rng.randrange(1000)).integers(0, 260, 3000)
        if rng.random() < 0.3:
            ids[:] = rng.randrange(SPECIAL)
        ids[rng.randrange(3000)] = rng.choice([3, 259, 260, 261, 65_535])
        return shard(ids)

    def spliced(self, rng: random.Random) -> bytes:
        return spliced(self.whole, rng)

    def place(self, rng: random.Random) -> str:
        """Something other than a file in its place."""
        return rng.choice(["folder", "nothing", "loop", "dangling", "empty name"])

    def put(self, mutant: Any, folder: Path) -> None:
        data, name, self.special = mutant
        for good in {TRAIN, VAL} - {name}:
            (folder / good).write_bytes(self.whole)
        self.name, self.data = name, data
        path = folder / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        elif data == "folder":
            path.mkdir()
        elif data == "loop":
            path.symlink_to(path)
        elif data == "dangling":
            path.symlink_to(folder / "nowhere")
        elif data == "empty name":
            (folder / f"fineweb_{name.split('_')[1]}_.bin").write_bytes(self.whole)

    def read(self, folder: Path) -> str | None:
        corpus = FineWeb(
            folder="x", tokenizer_file=None, train_shards=1, path=str(folder), special_ids=self.special,
            repo_id="x/y", revision="main",
        )  # fmt: skip
        tokenizer = ByteTokenizer(vocab_size=256 if self.special else 260)
        found = prepare(corpus, tokenizer, folder / "cache")
        for path, name in zip((*found.train, *found.val), (TRAIN, VAL), strict=True):
            stream = TokenStream([path])
            read = np.empty(stream.total, dtype=np.int64)
            stream.read(0, read)
            data = self.data if name == self.name and isinstance(self.data, bytes) else self.whole
            ids = np.frombuffer(data[HEADER_BYTES:], "<u2").astype(np.int64)
            expected = ids[ids >= self.special] - self.special
            if not np.array_equal(read, expected):
                return f"read other ids than {name} holds"
            if read.max() >= tokenizer.vocab_size:
                return f"id {read.max()} got through"
        return None


def shard(ids: np.ndarray) -> bytes:
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, 1, len(ids)
    return header.tobytes() + ids.astype("<u2").tobytes()
