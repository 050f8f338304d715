"""A hub that lies: listings, statuses, headers, files, and leftovers of an earlier download."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from jepa_lm.data import download, hub_client, hub_files
from tests.artifact.hostile import SECRET
from tests.fuzz.material import Material
from tests.fuzz.mutations import FLOATS, NUMBERS, TEXTS, cut, damaged, flipped, junk, spliced
from tests.fuzz.shards import shard

HUB, ELSEWHERE = "hub.example", "elsewhere.example"
ADDRESSES = (
    "file:///etc/passwd", f"http://{ELSEWHERE}/x", f"https://{HUB}/x", f"http://{HUB}:81/x",
    f"//{ELSEWHERE}/x", f"http://{HUB}@{ELSEWHERE}/x", "http://[", "//[", "http://", ":", "\\\\host\\x",
    "?c=1",
    "/", "x" * 70_000, "javascript:1", "http://\u202e/", "http://h:99999/", "http://" + "a" * 300 + "/",
)  # fmt: skip
HEADERS = (
    "Content-Length", "Content-Range", "Content-Encoding", "Transfer-Encoding", "Location", "Link", "ETag",
    "Retry-After", "X-Error-Message", "X-Error-Code", "Content-Type", "Set-Cookie", "X-Linked-Size",
)  # fmt: skip
VALUES = (
    "gzip", "zstd", "br", "deflate", "identity", "chunked", "bytes 0-5/10", "bytes 7-", "bytes */5",
    "bytes x",
    "9" * 5000, "-1", "1.5", "", ",", ";", "<", '<>; rel="next"', '</x>; rel="next"', "a=b; Path=/",
    "x" * 60_000,
    *(f'<{address}>; rel="next"' for address in ADDRESSES if address.isascii()),
    *(text for text in TEXTS if text.isascii() and text.isprintable()),
)  # fmt: skip
STATUSES = (
    200,
    200,
    206,
    204,
    301,
    302,
    304,
    307,
    400,
    401,
    403,
    404,
    408,
    416,
    429,
    500,
    503,
    599,
)


@dataclass
class Lie:
    """Answers of the hub, and files that already lie in the destination."""

    pages: list[bytes]
    links: list[str | None] = field(default_factory=lambda: [None])
    status: dict[str, int] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    endless: str | None = None
    left: dict[str, bytes] = field(default_factory=dict)


class Reader:
    """A repo of one folder, served by the hub client's own mock of a network."""

    allowed = ()

    def __init__(self, material: Material) -> None:
        os.environ["HF_ENDPOINT"] = f"http://{HUB}"
        self.files = {
            f"datasets/f/fineweb_{name}_000000.bin": shard(np.full(3000 + i, i))
            for i, name in enumerate(("train", "val"))
        }
        self.files["datasets/tokenizers/tok.model"] = b"a tokenizer"
        self.paths = list(self.files)
        self.entries = [self._entry(path) for path in self.paths]
        module = hub_client.http_error().__module__.partition(".")[0]
        self._http = sys.modules[module]

    def _entry(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if path.endswith(".bin"):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        return entry

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        kinds = [
            self.entry, self.entry, self.value, self.page, self.linked, self.header, self.content,
            self.content, self.redirect, self.record, self.partial,
        ]  # fmt: skip
        kind = kinds[number % len(kinds)]
        lie = Lie([json.dumps(self.entries).encode()])
        kind(lie, rng)
        return kind.__name__, lie

    def entry(self, lie: Lie, rng: random.Random) -> None:
        """Values of the listing replaced, dropped or added."""
        lie.pages = [json.dumps(damaged(self.entries, rng)).encode()]

    def value(self, lie: Lie, rng: random.Random) -> None:
        """A path, size or hash of a type that somebody may plausibly have used."""
        entries = json.loads(lie.pages[0])
        entry = rng.choice(entries)
        change = rng.randrange(3)
        name = rng.choice(["fineweb_train_000000.bin", "fineweb_val_1.bin", "fineweb_train_x.bin"])
        if change == 0:
            text = rng.choice(
                [*TEXTS, "../../x/", "/etc/", "a" * 300 + "/", "datasets/f/../f/", "datasets/./f/"]
            )
            entry["path"] = rng.choice(
                [text + name, f"datasets/f/{text}{name}", f"datasets/f/{name}{text}"]
            )
        elif change == 1:
            entry["size"] = rng.choice([*NUMBERS, *FLOATS, "5", None, True, [5], entry["size"] + 1])
        else:
            node = rng.choice([entry, entry.get("lfs", entry)])
            node["oid"] = rng.choice(
                [*TEXTS, "0" * 40, "0" * 64, "F" * 64, 5, None, entries[0]["oid"], {}]
            )
        lie.pages = [json.dumps(entries).encode()]

    def page(self, lie: Lie, rng: random.Random) -> None:
        """Bytes of the listing changed."""
        whole = lie.pages[0]
        lie.pages = [rng.choice([
            flipped(whole, rng), cut(whole, rng), spliced(whole, rng), b"[" * rng.choice([50, 100_000]),
            json.dumps(junk(rng)).encode(), b"[" + b"1," * 10_000 + b"1]", b" " * (9 << 20), whole + whole,
            b'[{"size": ' + b"9" * 5000 + b"}]",
        ])]  # fmt: skip

    def linked(self, lie: Lie, rng: random.Random) -> None:
        """More pages: elsewhere, repeated, without end."""
        pages = rng.choice([1, 2, 5])
        lie.pages = [
            json.dumps(self.entries if i == 0 else [{**self.entries[0], "path": f"x/{i}"}]).encode()
            for i in range(pages)
        ]
        lie.links = [
            rng.choice([None, f"http://{HUB}/more?c={i}", rng.choice(ADDRESSES)])
            for i in range(pages)
        ]
        if rng.random() < 0.02:
            lie.endless = "pages"

    def header(self, lie: Lie, rng: random.Random) -> None:
        """Statuses and headers, of the listing or of a file."""
        for _ in range(rng.choice([1, 1, 3])):
            where = rng.choice(["listing", *self.paths])
            if rng.random() < 0.5:
                lie.status[where] = rng.choice(STATUSES)
            lie.headers.setdefault(where, {})[rng.choice(HEADERS)] = rng.choice(VALUES)

    def content(self, lie: Lie, rng: random.Random) -> None:
        """A file with other bytes than its hash describes."""
        path = rng.choice(self.paths)
        whole = self.files[path]
        lie.content[path] = rng.choice([
            flipped(whole, rng), cut(whole, rng), spliced(whole, rng),
            whole + rng.randbytes(rng.randrange(100)), b"", b"<html>log in</html>",
            self.files[rng.choice(self.paths)],
        ])  # fmt: skip
        if rng.random() < 0.05:
            lie.endless = path

    def redirect(self, lie: Lie, rng: random.Random) -> None:
        where = rng.choice(["listing", *self.paths])
        lie.status[where] = rng.choice([301, 302, 303, 307, 308])
        lie.headers[where] = {"Location": rng.choice(ADDRESSES)}

    def record(self, lie: Lie, rng: random.Random) -> None:
        """A foreign or damaged record of verified files, and files that nobody verified."""
        stamped = {
            path: [len(data), 0, self._entry(path)["oid"]] for path, data in self.files.items()
        }
        files = [
            {
                "path": e["path"],
                "size": e["size"],
                "blob": e["oid"],
                "sha256": e.get("lfs", {}).get("oid"),
            }
            for e in self.entries
        ]
        source = {"repo_id": "willdepueoai/parameter-golf", "root": "datasets", "revision": "main"}
        record = {"source": source, "files": files, "verified": stamped}
        text = json.dumps(damaged(record, rng)).encode()
        lie.left["downloads.json"] = rng.choice([text, text, flipped(text, rng), cut(text, rng)])
        for path in rng.sample(self.paths, rng.randrange(3)):
            lie.left[path] = rng.choice([self.files[path], flipped(self.files[path], rng), b""])

    def partial(self, lie: Lie, rng: random.Random) -> None:
        """The unfinished download of a killed process, and another of an older version."""
        path = rng.choice(self.paths)
        entry = self._entry(path)
        version = entry.get("lfs", entry)["oid"][:16]
        whole = self.files[path]
        left = rng.choice(
            [cut(whole, rng), flipped(whole, rng), b"j" * rng.randrange(9000), b"", whole]
        )
        lie.left[f"{path}.{version}.incomplete"] = left
        lie.left[f"{path}.{'0' * 16}.incomplete"] = b"old"
        if rng.random() < 0.3:
            lie.content[path] = cut(whole, rng)

    def put(self, mutant: Lie, folder: Path) -> None:
        self._lie = mutant
        for path, data in mutant.left.items():
            target = folder / "shards" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def read(self, folder: Path) -> str | None:
        self._leaked: list[str] = []
        client = self._http.Client(
            transport=self._http.MockTransport(self._answer), follow_redirects=True
        )
        headers = {"Accept-Encoding": "identity", "Authorization": f"Bearer {SECRET}"}
        try:
            with (
                mock.patch.object(
                    hub_client, "_client", side_effect=lambda: (client, dict(headers), 1.0)
                ),
                mock.patch.object(hub_files, "BACKOFF_SECONDS", 0.0),
            ):
                got = download.download_shards(
                    folder="f",
                    destination=folder / "shards",
                    train_shards=1,
                    tokenizer_file="tok.model",
                )
        finally:
            problem = self._beside(folder)
        if problem is None and got.tokenizer is not None:
            for path in (*got.train, *got.val, got.tokenizer):
                if path.read_bytes() not in self.files.values():
                    return f"took other content for {path.name}"
        return problem

    def _beside(self, folder: Path) -> str | None:
        if self._leaked:
            return f"sent the token to {self._leaked}"
        if (found := os.listdir(folder)) and found != ["shards"]:
            return f"left {found}"
        kept = sum(path.stat().st_size for path in (folder / "shards").rglob("*") if path.is_file())
        return f"kept {kept} bytes" if kept > 100_000 else None

    def _answer(self, request: Any) -> Any:
        if request.url.host != HUB and SECRET in request.headers.get("Authorization", ""):
            self._leaked.append(str(request.url)[:100])
        lie, path = self._lie, request.url.path
        if "/tree/" in path or path == "/more":
            number = int(request.url.params.get("c", "-1")) + 1
            return self._page(number)
        key = path.partition("/resolve/main/")[2]
        data = lie.content.get(key, self.files.get(key, self.files[self.paths[0]]))
        if lie.endless == key:
            return self._http.Response(200, content=itertools.repeat(data or b"x", 1 << 16))
        start = 0
        if asked := request.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        status = lie.status.get(key, 206 if start else 200)
        if start and start >= len(data):
            status = 416
        return self._response(status, headers | lie.headers.get(key, {}), data[start:])

    def _page(self, number: int) -> Any:
        lie = self._lie
        if lie.endless == "pages":
            page = json.dumps([{**self.entries[0], "path": f"x/{number}"}]).encode()
            return self._response(
                200, {"Link": f'<http://{HUB}/more?c={number}>; rel="next"'}, page
            )
        if not number < len(lie.pages):
            return self._response(404, {}, b"")
        headers = dict(lie.headers.get("listing", {}))
        if lie.links[number] is not None:
            headers["Link"] = f'<{lie.links[number]}>; rel="next"'
        return self._response(lie.status.get("listing", 200), headers, lie.pages[number])

    def _response(self, status: int, headers: dict[str, str], data: bytes) -> Any:
        def pieces() -> Iterator[bytes]:
            for at in range(0, len(data), 1 << 16):
                yield data[at : at + (1 << 16)]

        raw = [(name.encode(), value.encode(errors="replace")) for name, value in headers.items()]
        return self._http.Response(status, headers=raw, content=pieces())
