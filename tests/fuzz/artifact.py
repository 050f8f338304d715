"""Exported files, as eval.py reads them: streams, tensors and metadata that do not fit together.

Most have valid checksums, so that the code behind the checksum test is reached.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import zstandard

from jepa_lm.artifact import ans
from jepa_lm.artifact.__main__ import contents
from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.container import COUNT, DIGEST, MAGIC, STREAM, from_file
from jepa_lm.artifact.loaded_model import load_data, load_model, weights_of
from tests.artifact.forging import unpack
from tests.fuzz.material import Material
from tests.fuzz.mutations import cut, damaged, flipped, spliced


class Reader:
    """The export of a small run."""

    allowed = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.kill")
    """A tokenizer is read in a process of its own; the program is ours, nothing in it is from the file."""

    def __init__(self, material: Material) -> None:
        (path,) = material.export.glob("artifact.*")
        self.whole = path.read_bytes()
        self.raw = from_file(path)
        self.tensors, self.meta = unpack(path)
        loaded = load_model(None, str(path))
        self.expected = weights_of(loaded)
        self.cache = material.folder / "prepared"
        load_data(loaded, {"cache_dir": str(self.cache)})

    def mutant(self, number: int, rng: random.Random) -> tuple[str, bytes]:
        kinds = [
            self.flipped, self.cut, self.rehashed, self.table, self.stream, self.bomb, self.config,
            self.config, self.tensor, self.spliced, self.coded,
        ]  # fmt: skip
        kind = kinds[number % len(kinds)]
        return kind.__name__, kind(rng)

    def flipped(self, rng: random.Random) -> bytes:
        return flipped(self.whole, rng)

    def cut(self, rng: random.Random) -> bytes:
        data = cut(self.whole, rng)
        return data if rng.random() < 0.5 else _sealed(data[len(MAGIC) + DIGEST :])

    def rehashed(self, rng: random.Random) -> bytes:
        """Flip bits and recompute the checksum."""
        return _sealed(flipped(self.whole[len(MAGIC) + DIGEST :], rng))

    def table(self, rng: random.Random) -> bytes:
        """Streams of any number, name and length."""
        count = rng.choice([0, 1, 2, 5, 16, 17, 2**32 - 1])
        rows = b"".join(
            STREAM.pack(
                rng.choice([*(c.encode() for c in COMPRESSORS), b"rar", b"\xff" * 8]),
                rng.choice([0, 1, 100, len(self.raw[0]), 2**27, 2**40, 2**64 - 1]),
                rng.choice([0, 1, 100, len(self.whole), 2**63]),
            )
            for _ in range(min(count, 20))
        )
        return _sealed(COUNT.pack(count) + rows + rng.randbytes(rng.randrange(300)))

    def stream(self, rng: random.Random) -> bytes:
        """A stream with bits flipped before compression, by a random codec."""
        return _file(rng, flipped(self.raw[0], rng, near=rng.choice([60, 5000, len(self.raw[0])])))

    def coded(self, rng: random.Random) -> bytes:
        """Entropy-coded streams with tables and states flipped or cut."""
        packed = ans.compress(self.raw[0])
        packed = cut(packed, rng) if rng.random() < 0.3 else flipped(packed, rng, near=2000)
        promise = rng.choice([len(self.raw[0]), 1000, 1 << 24])
        return _sealed(COUNT.pack(1) + STREAM.pack(b"ans", promise, len(packed)) + packed)

    def bomb(self, rng: random.Random) -> bytes:
        """A small stream that expands to much, with an honest promised size or one that is too small."""
        size = rng.choice([1 << 20, 1 << 24, 1 << 26]) if rng.random() < 0.1 else 1 << 18
        raw = bytes(size)
        if rng.random() < 0.5:  # JSON that claims a tensor of that size
            shape = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
            header = json.dumps(shape).encode()
            raw = len(header).to_bytes(8, "little") + header + raw
        codec = rng.choice(["zlib", "zstd"])
        packed = _squeezed(codec, raw)
        promise = rng.choice([len(raw), 1000, 1 << 20])
        return _sealed(COUNT.pack(1) + STREAM.pack(codec.encode(), promise, len(packed)) + packed)

    def config(self, rng: random.Random) -> bytes:
        """Some values of the JSON replaced, dropped or added."""
        meta = damaged(self.meta, rng)
        if rng.random() < 0.3:
            meta["weights_sha256"] = self.meta["weights_sha256"]
        return _file(rng, safetensors.torch.save(self.tensors, {"jepa_lm": json.dumps(meta)}))

    def tensor(self, rng: random.Random) -> bytes:
        """A tensor dropped, renamed, reshaped, or of another type."""
        tensors = dict(self.tensors)
        name = rng.choice(list(tensors))
        found = tensors.pop(name)
        change = rng.randrange(5)
        if change == 0:
            tensors[name + rng.choice(["x", "::scale", "::", ""])] = found.float()
        elif change == 1:
            tensors[name] = found.reshape(-1)[: rng.randrange(found.numel() + 1)].clone()
        elif change == 2:
            tensors[name] = torch.zeros(
                rng.choice([(0,), (3, 0), (2, 2, 2), ()]), dtype=found.dtype
            )
        elif change == 3:
            tensors[name] = found.to(rng.choice([torch.int64, torch.float64, torch.bool]))
        return _file(rng, safetensors.torch.save(tensors, {"jepa_lm": json.dumps(self.meta)}))

    def spliced(self, rng: random.Random) -> bytes:
        """Pieces of the raw safetensors moved about."""
        return _file(rng, spliced(self.raw[0], rng))

    def put(self, mutant: Any, folder: Path) -> None:
        (folder / "artifact.fuzz").write_bytes(mutant)
        shutil.copytree(self.cache, folder / "cache")  # else each would prepare text anew

    def read(self, folder: Path) -> str | None:
        file = folder / "artifact.fuzz"
        contents(file)
        loaded = load_model(None, str(file))
        if weights_of(loaded) != self.expected:
            return "loaded other weights"
        load_data(loaded, {"cache_dir": str(folder / "cache")})
        return None


def _sealed(body: bytes) -> bytes:
    return MAGIC + hashlib.sha256(body).digest() + body


def _squeezed(codec: str, raw: bytes) -> bytes:
    """Like `codecs.compress`, but fast and with little memory."""
    return zlib.compress(raw, 1) if codec == "zlib" else zstandard.compress(raw, 1)


def _file(rng: random.Random, raw: bytes) -> bytes:
    codec = rng.choice(["zlib", "zstd"])
    packed = _squeezed(codec, raw)
    return _sealed(COUNT.pack(1) + STREAM.pack(codec.encode(), len(raw), len(packed)) + packed)
