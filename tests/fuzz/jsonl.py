"""A user's text: plain, JSON lines and compressed files, folders of them, and settings of the splits."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jepa_lm.data.corpora import TextFiles
from jepa_lm.data.prepare import prepare
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import ByteTokenizer
from tests.fuzz.material import Material
from tests.fuzz.mutations import FLOATS, TEXTS, cut, damaged, flipped, junk, spliced

LINES = [f"Line {i} of it: déjà vu \U0001f600 {'x' * (i % 50)}." for i in range(300)]
PLAIN = "\n".join(LINES).encode() + b"\n"
DOCUMENTS = b"".join(
    json.dumps({"text": line, "id": i}).encode() + b"\n" for i, line in enumerate(LINES)
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig", "utf-7")
NAMES = (
    "a.TXT", "a.JsonL", "a.txt.gz", "a.jsonl.zst", "a", "a.bin", ".a.txt", "._a.txt",
    ".ipynb_checkpoints/a.txt",
    "a.txt.txt", "a.ndjson", "a.json", "a.csv", "a.parquet", "a.jsonl.bak", "a.md", "b\n\x1b[31m.txt",
    "b\u202etxt.txt",
    "b'$(x)`.txt", "é" * 120 + ".txt", os.fsdecode(b"\xff\xfe.txt"), " .txt", "-rf.txt", "[bold].txt",
    "${x}.txt",
)  # fmt: skip


@dataclass
class Text:
    """Files by name, and settings. `expected` is the content of a single file, None where it is undefined."""

    files: dict[str, Any]
    path: str = "text"
    val_path: str | None = None
    val_fraction: float = 0.1
    expected: bytes | None = None


class Reader:
    """Text that is tokenized into bytes, so that what was read can be compared."""

    allowed = ()

    def __init__(self, material: Material) -> None:
        pass

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        kinds = [
            self.damaged, self.damaged, self.encoded, self.line, self.line, self.shape, self.packed,
            self.packed,
            self.named, self.placed, self.split,
        ]  # fmt: skip
        kind = kinds[number % len(kinds)]
        return kind.__name__, kind(rng)

    def damaged(self, rng: random.Random) -> Text:
        """Bytes of a file changed; a plain ASCII file may well still be text."""
        name, whole = rng.choice([("a.txt", PLAIN), ("a.md", PLAIN), ("a.jsonl", DOCUMENTS)])
        data = rng.choice([flipped, cut, spliced])(whole, rng)
        return _single(name, data)

    def encoded(self, rng: random.Random) -> Text:
        """Another encoding, line end or mark at the start."""
        text = PLAIN.decode()
        data = rng.choice([
            text.replace("\U0001f600", "").encode(rng.choice(ENCODINGS)),
            PLAIN.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\0", b"\x85", b"\xe2\x80\xa8", b""])),
            b"\xef\xbb\xbf" + PLAIN, PLAIN + b"\n" * 50, b"\n" * 3000, b" " * 3000, b"\0" * 3000,
            PLAIN + b"\xed\xa0\x80", PLAIN[:100] + b"\xf0\x9f", b"\xc0\x80" * 99,
        ])  # fmt: skip
        return _single(rng.choice(["a.txt", "a.md"]), data)

    def line(self, rng: random.Random) -> Text:
        """Some lines of JSON that are not what they should be."""
        lines = [{"text": line, "id": i} for i, line in enumerate(LINES)]
        for _ in range(rng.choice([1, 1, 5])):
            at = rng.randrange(len(lines))
            lines[at] = rng.choice(
                [damaged({"text": LINES[at], "id": at}, rng), {"text": junk(rng)}, junk(rng)]
            )
        return _single("a.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def shape(self, rng: random.Random) -> Text:
        """JSON that is not lines of objects, and objects with other keys."""
        objects = [{"text": line} for line in LINES]
        data = rng.choice([
            json.dumps(objects).encode(), json.dumps(objects, indent=2).encode(), json.dumps(LINES).encode(),
            json.dumps({"text": LINES}).encode(), json.dumps({"data": objects}).encode(),
            DOCUMENTS.replace(b'"text"', rng.choice([b'"Text"', b'"content"', b'"te\\u0078t"', b'"text" '])),
            DOCUMENTS.replace(b"\n", rng.choice([b"", b",\n", b"\r\n", b"\n\n", b" \n"])),
            DOCUMENTS + b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}\n",
            DOCUMENTS + b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n",
            DOCUMENTS + b'{"text": "a", "text": 5}\n', DOCUMENTS + b'{"text": "\\ud800"}\n',
            DOCUMENTS + b'{"text": NaN}\n', DOCUMENTS + rng.choice([b"\n \n", b"null\n", b"#\n", b"{}\n"]),
        ])  # fmt: skip
        return _single(rng.choice(["a.jsonl", "a.json", "a.txt", "a.ndjson"]), data)

    def packed(self, rng: random.Random) -> Text:
        """Compressed files: whole, damaged, of several parts, and ones that unpack to much."""
        name, whole = rng.choice([("a.txt", PLAIN), ("a.jsonl", DOCUMENTS)])
        how = rng.choice([".gz", ".zst"])
        pack = gzip.compress if how == ".gz" else zstandard.compress
        if rng.random() < 0.04:
            return _single(name + how, pack(bytes(rng.choice([1 << 20, 1 << 23]))))
        data = pack(whole)
        data = rng.choice([
            data, data, flipped(data, rng), cut(data, rng), spliced(data, rng), data + data, data + b"junk",
            whole, b"", pack(b""), pack(pack(whole)), gzip.compress(whole), zstandard.compress(whole),
        ])  # fmt: skip
        return _single(name + how, data)

    def named(self, rng: random.Random) -> Text:
        """Names that misstate the file's format, or that no terminal should be shown."""
        names = rng.sample(NAMES, rng.choice([1, 2, 4]))
        files = {
            f"text/{name}": rng.choice([PLAIN, DOCUMENTS, gzip.compress(PLAIN), b""])
            for name in names
        }
        if rng.random() < 0.5:
            files["text/good.txt"] = PLAIN
        path = rng.choice(["text", "text", f"text/{names[0]}"])
        return Text(files, path)

    def placed(self, rng: random.Random) -> Text:
        """Links, folders and pipes where a file should be."""
        what = rng.choice(["link", "loop", "dangling", "up", "folder", "pipe", "closed"])
        path = rng.choice(["text", "text/x.txt", "text/x.txt/", "text/missing", "text/../text"])
        return Text({"text/good.txt": PLAIN, "text/x.txt": what}, path)

    def split(self, rng: random.Random) -> Text:
        """Paths and shares of the splits."""
        files = {
            "text/a.txt": PLAIN,
            "text/b.txt": PLAIN[:500],
            "other/c.txt": PLAIN[::-1][:50],
            "text/v/d.txt": b"d\n",
        }
        words = [text for text in TEXTS if len(text) <= 300]  # a line repeats them
        paths = ["text", "other", "text/a.txt", "text/v", ".", "text/b.txt", *words]
        share = rng.choice([*FLOATS, 0.1, 0.5, 0.999, 1e-9, 1, 0])
        val_path = rng.choice([None, *paths]) if rng.random() < 0.6 else None
        return Text(files, rng.choice(paths) if rng.random() < 0.5 else "text", val_path, share)

    def put(self, mutant: Text, folder: Path) -> None:
        self._text = mutant
        for name, data in mutant.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, bytes):
                with contextlib.suppress(OSError):  # a name that this disk rejects
                    path.write_bytes(data)
            elif data == "folder":
                path.mkdir()
            elif data == "pipe":
                os.mkfifo(path)
            elif data == "closed":
                path.write_bytes(PLAIN)
                path.chmod(0)
            else:
                to = {"link": "good.txt", "loop": "x.txt", "dangling": "nowhere", "up": ".."}
                path.symlink_to(to[data])

    def read(self, folder: Path) -> str | None:
        text = self._text
        corpus = TextFiles(path=text.path, val_path=text.val_path, val_fraction=text.val_fraction)
        prepared = prepare(corpus, ByteTokenizer(vocab_size=256), folder / "cache")
        read = _bytes(prepared.train) + _bytes(prepared.val)
        if text.expected is not None and read != text.expected:
            return f"read {len(read)} bytes, other ones than the {len(text.expected)} of the file"
        return None


def _single(name: str, data: bytes) -> Text:
    """One file cut in two: both splits together must equal its content."""
    text = Text({f"text/{name}": data}, f"text/{name}")
    plain = data
    try:
        if name.endswith(".gz"):
            plain = gzip.decompress(data)
        elif name.endswith(".zst"):
            return text
        if ".txt" in name or ".md" in name:
            plain.decode()
            text.expected = plain
        elif ".jsonl" in name:
            lines = [json.loads(line)["text"] for line in plain.split(b"\n") if line.strip()]
            text.expected = "".join(lines).encode()
    except Exception:
        pass  # refused, or its content is undefined
    return text


def _bytes(paths: list[Path]) -> bytes:
    stream = TokenStream(paths)
    read = np.empty(stream.total, dtype=np.int64)
    stream.read(0, read)
    return read.astype(np.uint8).tobytes()
