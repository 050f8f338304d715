"""Checkpoints: archives, their list of contents, tensors, configs, and the state that a run resumes from."""

from __future__ import annotations

import io
import random
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jepa_lm.model.checkpoint import damage, inference_model, newest_whole, read_checkpoint
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.trusted import Trust, check_part
from tests.fuzz.material import Material
from tests.fuzz.mutations import cut, damaged, flipped, junk, spliced

NAMES = ("../../x", "/tmp/x", "archive/data/../../x", "x", "a/data.pkl", "archive/data.pkl ")
PICKLES = (
    b".", b"N.", b"]" * 5000 + b"a" * 4999 + b".", b"cos\nsystem\n(X\x0b\0\0\0touch OWNEDtR.",
    b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x02\x85R.", b"cnumpy\nsavetxt\n(X\x05\0\0\0OWNED]tR.",
    b"\x80\x04\x8c\x02os\x8c\x06getcwd\x93)R.", b"(i__main__\nX\n.", b"\x8d" + b"\xff" * 7 + b"\0.",
)  # fmt: skip


class Reader:
    """The last checkpoint of a small run."""

    allowed = ()

    def __init__(self, material: Material) -> None:
        path = material.run / "checkpoints" / "last.ckpt"
        inference_model(read_checkpoint(path))  # PyTorch's one-time setup is not a mutant's doing
        self.raw = path.read_bytes()
        self.found = torch.load(path, weights_only=True)
        with zipfile.ZipFile(path) as archive:
            self.entries = {name: archive.read(name) for name in archive.namelist()}
        (self.contents,) = (name for name in self.entries if name.endswith("/data.pkl"))

    def mutant(self, number: int, rng: random.Random) -> tuple[str, bytes]:
        kinds = [
            self.flipped, self.cut, self.contents_flipped, self.contents_spliced, self.pickle,
            self.archive, self.config, self.config, self.config, self.tensor, self.part,
        ]  # fmt: skip
        kind = kinds[number % len(kinds)]
        return kind.__name__, kind(rng)

    def flipped(self, rng: random.Random) -> bytes:
        return flipped(self.raw, rng)

    def cut(self, rng: random.Random) -> bytes:
        return cut(self.raw, rng)

    def contents_flipped(self, rng: random.Random) -> bytes:
        """Bits of the list of contents flipped, under a checksum that fits."""
        near = rng.choice([200, 5000, None])
        return self._archive({self.contents: flipped(self.entries[self.contents], rng, near)})

    def contents_spliced(self, rng: random.Random) -> bytes:
        return self._archive({self.contents: spliced(self.entries[self.contents], rng)})

    def pickle(self, rng: random.Random) -> bytes:
        """Another list of contents, alone or before the original."""
        more = self.entries[self.contents] if rng.random() < 0.3 else b""
        return self._archive({self.contents: rng.choice(PICKLES) + more})

    def archive(self, rng: random.Random) -> bytes:
        """Entries left out, emptied, doubled, compressed, exchanged or added."""
        name, other = rng.choice(list(self.entries)), rng.choice(list(self.entries))
        data = self.entries[name]
        changes: list[dict[str, bytes | None]] = [
            {name: None}, {name: b""}, {name: data * 2}, {name: data[: len(data) // 2]},
            {name: rng.randbytes(len(data))}, {name: self.entries[other], other: data},
            {rng.choice(NAMES): b"x" * 50},
        ]  # fmt: skip
        kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        return self._archive(rng.choice(changes), kind)

    def config(self, rng: random.Random) -> bytes:
        """Some values of the config replaced, dropped or added."""
        config = dict(self.found["hyper_parameters"]["config"])
        part = rng.choice(["model", "model", "data", "quantization", None])
        if part is None:
            config = damaged(config, rng)
        else:
            config[part] = damaged(config[part], rng)
        return _saved({**self.found, "hyper_parameters": {"config": config}})

    def tensor(self, rng: random.Random) -> bytes:
        """A tensor of another shape, type or kind, under another name, or missing."""
        state = dict(self.found["state_dict"])
        name = rng.choice([n for n in state if n.startswith("model.")])
        tensor = state.pop(name)
        others: list[Any] = [
            tensor.reshape(-1)[: rng.randrange(tensor.numel() + 1)].clone(), tensor.to(torch.int64),
            tensor.double(), tensor.half(), torch.zeros(1).expand(1 << rng.randrange(60)),
            torch.zeros(0), tensor.to_sparse(), torch.empty(5, device="meta"), junk(rng),
        ]  # fmt: skip
        change = rng.randrange(len(others) + 2)
        if change < len(others):
            state[name] = others[change]
        elif change == len(others):
            state[rng.choice([name + "x", "model.zz", "", "averages.ema.model.x"])] = tensor
        return _saved({**self.found, "state_dict": state})

    def part(self, rng: random.Random) -> bytes:
        """One of the parts beside weights and config replaced, damaged or dropped."""
        found = dict(self.found)
        key = rng.choice(list(found))
        if rng.random() < 0.2:
            del found[key]
        elif rng.random() < 0.5 and key not in ("state_dict", "optimizer_states"):
            found[key] = damaged([found[key]], rng)[0:1] or None
        else:
            found[key] = junk(rng) if rng.random() < 0.8 else torch.zeros(3)
        return _saved(found)

    def _archive(
        self, changes: Mapping[str, bytes | None], kind: int = zipfile.ZIP_STORED
    ) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind) as target:
            for name, data in {**self.entries, **changes}.items():
                if data is not None:
                    target.writestr(name, data)
        return out.getvalue()

    def put(self, mutant: Any, folder: Path) -> None:
        (folder / "step-6.ckpt").write_bytes(mutant)

    def read(self, folder: Path) -> str | None:
        """Read what finding, evaluating and exporting read of a checkpoint before they touch any text."""
        path = folder / "step-6.ckpt"
        if (reason := damage(path)) is not None:
            raise UserError(f"{path}: {reason}")
        newest_whole(folder)
        checkpoint = read_checkpoint(path)
        run = checkpoint["hyper_parameters"]["config"]
        for part in ("data", "quantization"):
            check_part(part, run[part], f"ckpt_path={path}", Trust())
        inference_model(checkpoint, f"ckpt_path={path}")
        return None


def _saved(value: Any) -> bytes:
    out, before = io.BytesIO(), sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # the mutation may be nested deeper than Python can normally save
    try:
        torch.save(value, out)
    finally:
        sys.setrecursionlimit(before)
    return out.getvalue()
