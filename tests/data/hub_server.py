"""A Hugging Face hub on 127.0.0.1 for tests: one dataset or model repo, served from a dict of files.

It speaks what huggingface_hub asks for: the recursive tree listing, in pages joined by Link
headers, and HEAD and GET of resolve URLs. Large (LFS) files are redirected to a second URL, as the
hub redirects to its CDN, and every GET of content understands Range. Faults can be set per path. What a
model repo is sent is in `hub_uploads`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.data.hub_uploads import COMMIT, Uploads


@dataclass
class Request:
    """One request as the server received it; `sent` counts the bytes of the body."""

    method: str
    path: str
    range: str | None
    token: str | None = None
    sent: int = 0


@dataclass
class HubServer:
    """Use as a context manager; `url` is the endpoint. The fields can be changed while it runs.

    Args:
        files: path in the repo to content.
        lfs: whether the listing gives a sha256 and content comes from the CDN path.
        page_size: entries per page of the listing.
        cuts: path to byte counts; each GET of content takes the next one and is cut after it.
        instead: path to the content to serve in place of what the listing describes.
        ignore_range: answer 200 with everything, as some proxies do.
        statuses: path to status codes; each GET of the path takes the next one.
        error: the body of such an answer.
        entries: path to what its entry in the listing says instead; None leaves a key out.
        listing: what is served in place of a page of the listing.
        next_page: address of the page after each, or "endless" for pages without end.
        headers: path to further headers of its content.
        redirects: path to an address that its content is at.
        unsized: paths whose content is sent without its length, again and again, for up to 64 MB.
        drip: path to seconds between the bytes of an answer: of its body, or with its headers.
        models: serve a model repo; the files are the same at `main` and at COMMIT.
        private: whether the model repo is; None if it does not exist until it is created.
        created, commits: what was sent to create a repo, and the lines of each commit.
        sent: content that was uploaded for LFS, by its sha256.
    """

    files: dict[str, bytes]
    repo_id: str = "willdepueoai/parameter-golf"
    lfs: bool = True
    page_size: int = 1000
    cuts: dict[str, list[int]] = field(default_factory=dict)
    instead: dict[str, bytes] = field(default_factory=dict)
    ignore_range: bool = False
    statuses: dict[str, list[int]] = field(default_factory=dict)
    entries: dict[str, dict[str, object]] = field(default_factory=dict)
    listing: bytes | None = None
    next_page: str | None = None
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    unsized: set[str] = field(default_factory=set)
    error: bytes = b"busy"
    drip: dict[str, tuple[str, float]] = field(default_factory=dict)
    models: bool = False
    private: bool | None = False
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    sent: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # The poll interval is what closing the server waits for.
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def downloads(self, path: str) -> list[Request]:
        """Return the GETs that carried content of a file, in order."""
        pages = "" if self.models else "/datasets"
        content = (f"/cdn/{path}", f"{pages}/{self.repo_id}/resolve/main/{path}")
        return [r for r in self.requests if r.method == "GET" and r.path in content and r.sent]


class _Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _path(self) -> str:
        """Write the request down, and return its path."""
        path = unquote(urlsplit(self.path).path)
        self.seen = Request(
            self.command, path, self.headers.get("Range"), self.headers.get("Authorization")
        )
        self.server_hub.requests.append(self.seen)
        return path

    def _answer(self) -> None:
        hub, url, path = self.server_hub, urlsplit(self.path), self._path()
        api = f"/api/{'models' if hub.models else 'datasets'}/{hub.repo_id}"
        if hub.models:
            path = path.replace(f"/tree/{COMMIT}", "/tree/main", 1)
            path = path.replace(f"/resolve/{COMMIT}/", "/resolve/main/", 1)
        tree = f"{api}/tree/main"
        resolve = f"{'' if hub.models else '/datasets'}/{hub.repo_id}/resolve/main/"
        if path == tree and hub.statuses.get(path):
            self._send(hub.statuses[path].pop(0), hub.error)
            return
        if hub.models and hub.private is None and path in (api, tree):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        if path == api and hub.models:
            self._json({"id": hub.repo_id, "sha": COMMIT, "private": bool(hub.private)})
            return
        if path.startswith(tree):
            self._tree(path.removeprefix(tree).strip("/"), parse_qs(url.query))
        elif path.startswith(resolve):
            self._content(path.removeprefix(resolve), direct=not hub.lfs)
        elif path.startswith("/cdn/"):
            self._content(path.removeprefix("/cdn/"), direct=True)
        else:
            self._send(404, b"nothing here")

    def _tree(self, root: str, query: dict[str, list[str]]) -> None:
        hub = self.server_hub
        paths = sorted(path for path in hub.files if path.startswith(root + "/") or not root)
        if not paths and not hub.models:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        entries = [{"type": "directory", "path": root, "size": 0, "oid": "0" * 40}]
        entries += [self._entry(path) for path in paths]
        start = int(query.get("cursor", ["0"])[0])
        headers = {"Content-Type": "application/json"}
        if start + hub.page_size < len(entries):
            address = f"{hub.url}{urlsplit(self.path).path}"
            following = f"{address}?recursive=true&cursor={start + hub.page_size}"
            headers["Link"] = f'<{following}>; rel="next"'
        page = entries[start : start + hub.page_size]
        if hub.next_page == "endless":
            headers["Link"] = (
                f'<{hub.url}{urlsplit(self.path).path}?cursor={start + 1}>; rel="next"'
            )
            page = [{**self._entry(paths[0]), "path": f"datasets/{start}"}]
        elif hub.next_page:
            headers["Link"] = f'<{hub.next_page}>; rel="next"'
        body = json.dumps(page).encode() if hub.listing is None else hub.listing
        self._send(200, body, headers)

    def _entry(self, path: str) -> dict[str, object]:
        content = self.server_hub.files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if self.server_hub.lfs:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        entry |= self.server_hub.entries.get(path, {})
        return {key: value for key, value in entry.items() if value is not None}

    def _content(self, path: str, *, direct: bool) -> None:
        hub = self.server_hub
        if path not in hub.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET" and hub.statuses.get(path):
            self._send(hub.statuses[path].pop(0), hub.error)
            return
        listed = hub.files[path]
        etag = f'"{hashlib.sha256(listed).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers |= hub.headers.get(path, {})
        if path in hub.redirects:
            self._send(302, b"", headers | {"Location": hub.redirects[path]})
            return
        if not direct:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(listed))}
            headers["Location"] = f"{hub.url}/cdn/{quote(path)}"
            self._send(302, b"", headers)
            return
        content = hub.instead.get(path, listed)
        status, start = 200, 0
        if self.seen.range and not hub.ignore_range:
            start = int(self.seen.range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if path in hub.unsized:
            self._send_endlessly(content)
            return
        if path in hub.drip:
            self._send_slowly(content, *hub.drip[path])
            return
        cuts = hub.cuts.get(path) if self.command == "GET" else None
        self._send(status, content[start:], headers, cut_after=cuts.pop(0) if cuts else None)

    def _send_endlessly(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            while self.seen.sent < 64 << 20:
                self.wfile.write(content)
                self.seen.sent += len(content)
        except OSError:
            pass  # the client has hung up

    def _send_slowly(self, content: bytes, where: str, seconds: float) -> None:
        """Send one byte at a time until the client hangs up."""
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n".encode()
        slow = itertools.chain(b"X: ", itertools.repeat(120)) if where == "headers" else content
        self.close_connection = True
        try:
            self.wfile.write(head if where == "headers" else head + b"\r\n")
            for byte in slow:
                self.wfile.write(bytes([byte]))
                time.sleep(seconds)
        except OSError:
            pass

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut_after: int | None = None,
    ) -> None:
        """Answer and close: a kept connection would be served even after the server is gone."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            sent = body if cut_after is None else body[:cut_after]
            self.seen.sent = len(sent)  # written down before the client can react
            self.wfile.write(sent)

    def log_message(self, *args: object) -> None:
        """Keep the tests' output quiet; `requests` has it all."""
