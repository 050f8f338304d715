"""Loads mutated artifacts in a process of its own; prints what became of them as JSON.

`python -m tests.artifact.fuzz_worker FILE FIRST COUNT`: mutation number i depends on i alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import zstandard

from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.container import COUNT, DIGEST, MAGIC, STREAM, from_file
from jepa_lm.artifact.loading import load_artifact, weights_hash
from jepa_lm.errors import UserError
from tests.artifact.forging import unpack

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**40, -0.5, float("nan"), float("inf"), "", "x" * 5000, [], {},
    [[]], {"": None}, "${oc.env:HOME}", "${times:9,9}", "${", "???", "os.system", "../../etc/passwd",
    {"_target_": "os.system", "command": "touch OWNED"}, {"_target_": "builtins.eval", "_args_": ["1"]},
    {"_target_": "jepa_lm.model.transformer.Transformer"}, {"_target_": "jepa_lm.model.heads.TiedHead"},
    {"_target_": "subprocess.Popen", "args": ["touch", "OWNED"]}, {"_args_": ["touch OWNED"]},
    "int", "cast", "float8", "float16", "float32", 7, 4, 64, [1, 2, 3],
)  # fmt: skip


class Fuzzer:
    """Mutations of one file."""

    def __init__(self, path: Path) -> None:
        self.whole = path.read_bytes()
        self.raw = from_file(path)
        self.tensors, self.meta = unpack(path)

    def mutant(self, number: int) -> tuple[str, bytes]:
        """Name of the mutation and the file."""
        rng = random.Random(number)
        kinds: list[Callable[[random.Random], bytes]] = [
            self.flipped, self.cut, self.rehashed, self.table, self.stream, self.bomb, self.config,
            self.config, self.tensor, self.spliced,
        ]  # fmt: skip
        kind = kinds[number % len(kinds)]
        return kind.__name__, kind(rng)

    def flipped(self, rng: random.Random) -> bytes:
        return _flip(self.whole, rng)

    def cut(self, rng: random.Random) -> bytes:
        data = self.whole[: rng.randrange(len(self.whole))]
        return data if rng.random() < 0.5 else _sealed(data[len(MAGIC) + DIGEST :])

    def rehashed(self, rng: random.Random) -> bytes:
        """Flipped below a checksum that fits again."""
        return _sealed(_flip(self.whole[len(MAGIC) + DIGEST :], rng))

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
        """Flipped before compression, by a random codec."""
        return _file(rng, _flip(self.raw[0], rng, near=rng.choice([60, 5000, len(self.raw[0])])))

    def bomb(self, rng: random.Random) -> bytes:
        """Much out of little: with an honest promise, and with one that is too small."""
        raw = (
            bytes(rng.choice([1 << 20, 1 << 24, 1 << 26])) if rng.random() < 0.1 else bytes(1 << 18)
        )
        if rng.random() < 0.5:  # JSON that says there is a tensor of all that
            shape = json.dumps(
                {"a": {"dtype": "U8", "shape": [len(raw)], "data_offsets": [0, len(raw)]}}
            ).encode()
            raw = len(shape).to_bytes(8, "little") + shape + raw
        codec = rng.choice(["zlib", "zstd"])
        packed = _squeezed(codec, raw)
        promise = rng.choice([len(raw), 1000, 1 << 20])
        return _sealed(COUNT.pack(1) + STREAM.pack(codec.encode(), promise, len(packed)) + packed)

    def config(self, rng: random.Random) -> bytes:
        """Some values of the JSON replaced, dropped or added."""
        meta = copy.deepcopy(self.meta)
        for _ in range(rng.choice([1, 1, 2, 5])):
            _damage(meta, rng)
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
        raw = self.raw[0]
        a, b = sorted((rng.randrange(len(raw)), rng.randrange(len(raw))))
        pieces = [raw[:a], raw[a:b], raw[b:]]
        rng.shuffle(pieces)
        return _file(rng, b"".join(pieces))


def _flip(data: bytes, rng: random.Random, near: int | None = None) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        out[rng.randrange(min(len(out), near or len(out)))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _sealed(body: bytes) -> bytes:
    return MAGIC + hashlib.sha256(body).digest() + body


def _squeezed(codec: str, raw: bytes) -> bytes:
    """As `codecs.compress`, but fast and with little memory."""
    return zlib.compress(raw, 1) if codec == "zlib" else zstandard.compress(raw, 1)


def _file(rng: random.Random, raw: bytes) -> bytes:
    codec = rng.choice(["zlib", "zstd"])
    packed = _squeezed(codec, raw)
    return _sealed(COUNT.pack(1) + STREAM.pack(codec.encode(), len(raw), len(packed)) + packed)


def _damage(node: Any, rng: random.Random) -> None:
    """Change one value somewhere below a dictionary or list."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        change = rng.randrange(4)
        if change == 0 and isinstance(node, dict):
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[rng.choice(["_target_", "_args_", "_partial_", "_recursive_", "x", ""])] = _junk(
                rng
            )
        elif change == 2 and isinstance(node[key], int):
            node[key] = node[key] * rng.choice([-1, 0, 2, 1000, 10**9]) + rng.choice([0, 1])
        else:
            node[key] = _junk(rng)
        return


def _junk(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(JUNK))


def _peak_bytes() -> int:
    """Of this program alone: `ru_maxrss` would begin with what the parent process held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status names no peak")


def main(path: Path, first: int, count: int) -> dict[str, Any]:
    """Load `count` mutants; what each kind came to, and everything that was not as it should be."""
    torch.set_num_threads(1)
    fuzzer = Fuzzer(path)
    right = load_artifact(path)
    expected = weights_hash(dict(right.model.named_parameters()))
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mutated = Path(folder) / "artifact.fuzz"
        for number in range(first, first + count):
            kind, data = fuzzer.mutant(number)
            mutated.write_bytes(data)
            began = time.perf_counter()
            try:
                loaded = load_artifact(mutated)
                end = "loaded"
                if weights_hash(dict(loaded.model.named_parameters())) != expected:
                    wrong.append(f"{number} ({kind}): loaded other weights")
            except UserError as error:
                end = "refused"
                if "\n" in str(error) or len(str(error)) > 600:
                    wrong.append(f"{number} ({kind}): no clear line: {str(error)[:300]!r}")
            except BaseException:
                end = "crashed"
                wrong.append(f"{number} ({kind}): {traceback.format_exc()[-600:]}")
            seconds = time.perf_counter() - began
            slowest = max(slowest, seconds)
            ends[f"{kind} {end}"] += 1
            left = set(os.listdir(folder)) - {mutated.name}
            if left:
                wrong.append(f"{number} ({kind}): left {left}")
    return {
        "ends": dict(sorted(ends.items())),
        "wrong": wrong,
        "slowest": slowest,
        "peak_bytes": _peak_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))))
