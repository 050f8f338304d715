"""What huggingface_hub sends to create a model repo and to commit to it, as the tests' hub answers it.

A commit takes these requests: create the repo, check the card's form, ask for each file whether it goes by
LFS (`preupload`), ask where LFS content goes (`objects/batch`), send it there, and send the commit: one JSON
object a line, with the content of small files. Statuses of the hub can be set for the path of each request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.data.hub_server import HubServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_UPLOADS = ".br", ".zlib", ".ans", ".lzma", ".zstd", ".model"


class Uploads(BaseHTTPRequestHandler):
    """Handles POST and PUT; what a commit holds goes to the hub's `files`, its deletions leave them."""

    server_hub: HubServer

    def do_POST(self) -> None:
        hub, path = self.server_hub, self._path()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.statuses.get(path):
            self._send(hub.statuses[path].pop(0), hub.error)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": [{"message": "empty metadata"}]})
        elif path == f"/api/models/{hub.repo_id}/preupload/main":
            self._json({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        elif path == f"/{hub.repo_id}.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            self._json({"transfer": "basic", "objects": [self._action(entry) for entry in objects]})
        elif path == f"/api/models/{hub.repo_id}/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, b"nothing here")

    def do_PUT(self) -> None:
        path, content = self._path(), self._content_sent()
        assert path == f"/lfs/{hashlib.sha256(content).hexdigest()}"
        self.server_hub.sent[path.removeprefix("/lfs/")] = content
        self._json({})

    def _content_sent(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, asked: dict[str, Any]) -> None:
        hub = self.server_hub
        hub.created.append(asked)
        if hub.private is not None:
            self._send(409, b"You already created this model repo")
            return
        hub.private = asked.get("private", asked.get("visibility") == "private")
        self._json({"url": f"{hub.url}/{hub.repo_id}"})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(LFS_UPLOADS) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _action(self, entry: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server_hub.url}/lfs/{entry['oid']}"}
        return {**entry, "actions": {"upload": upload}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.server_hub
        hub.commits.append(lines)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.sent[value["oid"]]
            elif line["key"] == "deletedFile":
                del hub.files[value["path"]]
        address = f"{hub.url}/{hub.repo_id}/commit/{COMMIT}"
        self._json({"commitUrl": address, "commitOid": COMMIT, "success": True})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _path(self) -> str:
        raise NotImplementedError

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        raise NotImplementedError
