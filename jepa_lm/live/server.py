"""The local server of the page: it answers this machine only, and shows only what lies below one folder.

Text out of files is sent as JSON or plain text, never as markup. The two kinds of pages that this package
writes into folders, run.html and report.html, may have been edited by others: they are sent with a policy
under which nothing in them runs, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlsplit

from jepa_lm.live.files import Shelf, decoded, encoded, opened
from jepa_lm.live.watched import AXES, REPORT, Watch
from jepa_lm.utils.errors import warn
from jepa_lm.utils.paths import PAGE_FILE
from jepa_lm.utils.quoting import literal, one_line

HERE = "127.0.0.1"
ASSETS = {
    "/": ("page.html", "text/html"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/report.css": ("../study/report.css", "text/css"),
}
LIVE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
)
INERT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-downloads; "
NOWHERE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MOST_SHOWN, MOST_SENT = 2 << 20, 1 << 30
"""Bytes of a file that is shown as text, and of one that can be downloaded at all."""
READABLE = {".json", ".yaml", ".csv", ".log", ".txt", ".md", ".diff"}
LONGEST_QUERY = 1 << 15
PATIENCE = 10.0
"""Seconds that a connection may stay silent."""


class Server(ThreadingHTTPServer):
    """Serves the page until it is shut down.

    Args:
        folder: of the runs. port: 0 takes any that is free.

    Raises:
        OSError: the port is taken or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there, it would share a port that is taken

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.shelf = folder, Shelf(folder)
        self.watch = Watch(self.shelf)
        super().__init__((HERE, port), _Handler)
        names = (HERE, "localhost")
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        if self.server_port == 80:
            self.hosts |= set(names)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HERE}:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind without looking up this machine's name, which may ask a name server."""
        self.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address)
        )
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HERE, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error of one answer on one line; a browser that went away is none."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            warn(f"a request was not answered ({type(error).__name__}: {one_line(error)})")


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "jepa_lm", ""
    timeout = PATIENCE

    @property
    def _of(self) -> Server:
        return cast(Server, self.server)

    def parse_request(self) -> bool:
        """Read a request; any method but GET is refused."""
        if not super().parse_request():
            return False
        if self.command != "GET":
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
        return self.command == "GET"

    def do_GET(self) -> None:
        """Answer a request."""
        if self.headers.get_all("Host", []) not in [[host] for host in self._of.hosts]:
            return self.send_error(HTTPStatus.FORBIDDEN, f"use the address {self._of.url}")
        if len(self.path) > LONGEST_QUERY:
            return self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
        address = urlsplit(self.path)
        if address.scheme or address.netloc:
            return self.send_error(HTTPStatus.BAD_REQUEST)
        if address.path in ASSETS:
            name, kind = ASSETS[address.path]
            return self._send((Path(__file__).parent / name).read_bytes(), kind)
        if address.path == "/api/runs":
            return self._json({"folder": literal(str(self._of.folder)), **self._of.watch.runs()})
        if address.path == "/api/curves":
            return self._curves(parse_qs(address.query, keep_blank_values=True))
        try:
            if address.path == "/api/files":
                return self._listing(
                    _first(parse_qs(address.query, keep_blank_values=True), "folder")
                )
            if address.path.startswith("/files/"):
                return self._file(address.path.removeprefix("/files/"))
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
        self.send_error(HTTPStatus.NOT_FOUND)

    def _curves(self, query: Mapping[str, list[str]]) -> None:
        metric, axis = (_first(query, key) for key in ("metric", "x"))
        if axis not in AXES:
            return self.send_error(HTTPStatus.BAD_REQUEST, f"x: must be one of {', '.join(AXES)}")
        self._json(self._of.watch.curves(query.get("run", []), metric, axis))

    def _file(self, name: str) -> None:
        """Send a file, named as in an address.

        Raises:
            OSError: it does not exist, or may not be read.
        """
        path = self._of.shelf.find(decoded(name))
        with opened(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size > MOST_SENT:
                return self.send_error(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{size:,} bytes are too many to send"
                )
            if path.name in (PAGE_FILE, REPORT):
                self._head("text/html", size, INERT)
            elif path.suffix in READABLE and size <= MOST_SHOWN:
                self._head("text/plain", size, INERT)
            else:
                named = (
                    f"attachment; filename*=UTF-8''{quote(path.name, safe='', errors='replace')}"
                )
                self._head("application/octet-stream", size, INERT, {"Content-Disposition": named})
            # A file that grows meanwhile is cut where it ended.
            left = size
            while left > 0 and (data := file.read(min(left, 1 << 20))):
                self.wfile.write(data)
                left -= len(data)

    def _listing(self, name: str) -> None:
        """Send names, addresses and sizes of what lies in a folder.

        Raises:
            OSError: it does not exist, or may not be read.
        """
        folder = self._of.shelf.find(decoded(name))
        entries = [
            {
                "name": literal(entry),
                "path": encoded(self._of.shelf.name(folder / entry)),
                "bytes": size,
            }
            for entry, size in self._of.shelf.listed(folder)
        ]
        self._json({"entries": entries})

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value, allow_nan=False).encode(), "application/json")

    def _send(self, data: bytes, kind: str) -> None:
        self._head(kind, len(data), LIVE)
        self.wfile.write(data)

    def _head(
        self,
        kind: str,
        size: int,
        policy: str,
        more: Mapping[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        coded = kind if kind == "application/octet-stream" else f"{kind}; charset=utf-8"
        fixed = {"Content-Type": coded, "Content-Length": str(size)}
        policies = {"Content-Security-Policy": policy + NOWHERE}
        for key, value in (fixed | policies | HEADERS | dict(more or {})).items():
            self.send_header(key, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error as plain text."""
        status = HTTPStatus(code)
        data = f"{code} {message or status.phrase}\n".encode(errors="replace")
        more = {"Allow": "GET"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        self._head("text/plain", len(data), INERT, more, status)
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Do not print requests."""


def _first(query: Mapping[str, list[str]], key: str) -> str:
    return query.get(key, [""])[0]
