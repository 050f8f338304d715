"""The local server: what it answers, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from jepa_lm.live import server as module
from jepa_lm.live.server import Server
from tests.study.sweeps import write_run

SCRIPT = "<script>alert(1)<|script>"
SECRET = "do not tell"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def kind(self) -> str:
        return self.headers["Content-Type"]


Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "logs"
    run = write_run(folder / "train" / "run", 1.7)
    write_run(folder / SCRIPT, 1.8, objective="<img src=x onerror=alert(1)>")
    (run / "run.html").write_text("<script>alert(1)</script>")
    (run / "other.html").write_text("<script>alert(1)</script>")
    (run / "sample.txt").write_text("Anne <b>said</b>\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(bytes(range(256)) * 20)
    (run / ".lock").write_text(SECRET)
    (folder.parent / "secret.txt").write_text(SECRET)
    (folder.parent / "logs2").mkdir()
    (folder.parent / "logs2" / "secret.txt").write_text(SECRET)
    (run / "out.txt").symlink_to(folder.parent / "secret.txt")
    (run / "out").symlink_to(folder.parent)
    (run / "in.txt").symlink_to(run / "sample.txt")
    (run / "round").symlink_to(run / "round")
    os.mkfifo(run / "pipe.txt")
    (run / os.fsdecode(b"caf\xe9.txt")).write_text("latin")
    return folder


@pytest.fixture(scope="module")
def server(logs) -> Iterator[Server]:
    with Server(logs, 0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def ask(server) -> Ask:
    def get(path: str, *, method: str = "GET", host: str | None = "", **more: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host is not None:
            connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
        for key, value in more.items():
            connection.putheader(key, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return Answer(answer.status, answer.headers, body)

    return get


def test_it_listens_on_this_machine_only(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/chart.js", "text/javascript; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/report.css", "text/css; charset=utf-8"),
        ("/api/runs", "application/json; charset=utf-8"),
        ("/api/curves?metric=val/bpb&x=step&run=train/run", "application/json; charset=utf-8"),
        ("/api/files?folder=train/run", "application/json; charset=utf-8"),
        ("/files/train/run/summary.json", "text/plain; charset=utf-8"),
        ("/files/train/run/.hydra/hydra.yaml", "text/plain; charset=utf-8"),
        ("/files/train/run/in.txt", "text/plain; charset=utf-8"),
        ("/files/train/run/run.html", "text/html; charset=utf-8"),
        ("/files/train/run/other.html", "application/octet-stream"),
        ("/files/train/run/checkpoints/last.ckpt", "application/octet-stream"),
    ],
)
def test_what_it_sends(ask, path, kind):
    answer = ask(path)
    assert (answer.status, answer.kind) == (200, kind)
    assert int(answer.headers["Content-Length"]) == len(answer.body) > 0
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in answer.headers
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert ("sandbox allow-downloads;" in policy) == path.startswith("/files/")
    assert ("script-src" in policy) != path.startswith("/files/")
    assert "'unsafe" not in policy.partition("script-src")[2].partition(";")[0]


def test_a_download_keeps_its_name(ask):
    answer = ask("/files/train/run/checkpoints/last.ckpt")
    assert answer.body == bytes(range(256)) * 20
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''last.ckpt"


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.txt",
        "/files/%2e%2e/secret.txt",
        "/files/%2e%2e%2fsecret.txt",
        "/files/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/files/train/run/../../../secret.txt",
        "/files/train/..\\..\\secret.txt",
        "/files/train%5c..%5c..%5csecret.txt",
        "/files/../logs2/secret.txt",
        "/files//etc/passwd",
        "/files/%2fetc%2fpasswd",
        "/files/{parent}/secret.txt",
        "/files/%252e%252e/secret.txt",
        "/files/train/run/out.txt",
        "/files/train/run/out/secret.txt",
        "/files/train/run/round",
        "/files/train/run/pipe.txt",
        "/files/train/run/.lock",
        "/files/train/run",
        "/files/",
        "/files/%00",
        "/files/" + "a" * 5000,
        "/files/" + "a/" * 3000,
        "/../secret.txt",
        "/page.html",
        "/server.py",
        "/etc/passwd",
        "/api/files?folder=..",
        "/api/files?folder=%2e%2e",
        "/api/files?folder=%252e%252e",
        "/api/files?folder=/etc",
        "/api/files?folder=train/run/out",
        "/api/files?folder=train/run/summary.json",
    ],
)
def test_nothing_outside_and_nothing_hidden_is_served(ask, logs, path):
    answer = ask(path.replace("{parent}", str(logs.parent)))
    assert answer.status == 404
    assert SECRET.encode() not in answer.body
    assert b"root:" not in answer.body


def test_records_that_lead_out_are_no_run(ask, logs):
    listed = json.loads(ask("/api/files?folder=train/run").body)["entries"]
    names = {entry["name"] for entry in listed}
    assert {"summary.json", "sample.txt", "checkpoints", "in.txt"} <= names
    assert not names & {"out", "out.txt", "round", ".lock"}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "localhost:1",
        "127.0.0.1:{port}.evil.example",
        None,
    ],
)
def test_other_hosts_are_refused(ask, server, host):
    answer = ask("/api/runs", host=host and host.format(port=server.server_port))
    assert answer.status == 403
    assert b"vicreg" not in answer.body


def test_localhost_is_this_machine(ask, server):
    assert ask("/api/runs", host=f"localhost:{server.server_port}").status == 200


def test_a_second_host_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest("GET", "/api/runs")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize(
    "method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"]
)
def test_only_get(ask, method):
    answer = ask("/api/runs", method=method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/curves?metric=val/bpb&x=years&run=train/run", 400),
        ("/api/curves?metric=val/bpb", 400),
        ("http://evil.example/api/runs", 400),
        ("//evil.example/api/runs", 404),
        ("/api/runs?" + "a" * 40_000, 414),
        ("/nowhere", 404),
    ],
)
def test_what_cannot_be_answered(ask, path, status):
    answer = ask(path)
    assert (answer.status, answer.kind) == (status, "text/plain; charset=utf-8")
    assert answer.body.count(b"\n") == 1


def test_names_are_data_and_never_markup(ask):
    answer = ask("/api/runs")
    (row,) = (row for row in json.loads(answer.body)["runs"] if row["score"] == 1.8)
    assert row["folder"] == SCRIPT
    assert row["objective"] == "<img src=x onerror=alert(1)>"
    assert "<" not in row["run"]
    assert ask(f"/files/{row['run']}/summary.json").status == 200
    page = ask("/").body
    assert b"alert" not in page
    source = "".join(path.read_text() for path in Path(module.__file__).parent.glob("*.js"))
    for markup in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http:",
        "https:",
    ):
        assert markup not in source.replace('"http://www.w3.org/2000/svg"', "")


def test_a_name_of_any_bytes_can_be_opened(ask):
    listed = json.loads(ask("/api/files?folder=train/run").body)["entries"]
    (entry,) = (entry for entry in listed if entry["name"].startswith("caf"))
    assert entry["path"] == "train/run/caf%E9.txt"
    assert ask(f"/files/{entry['path']}").body == b"latin"


def test_large_files_are_downloads_or_refused(ask, logs, monkeypatch):
    assert ask("/files/train/run/sample.txt").kind.startswith("text/plain")
    monkeypatch.setattr(module, "MOST_SHOWN", 10)
    assert ask("/files/train/run/sample.txt").kind == "application/octet-stream"
    monkeypatch.setattr(module, "MOST_SENT", 10)
    answer = ask("/files/train/run/sample.txt")
    assert answer.status == 413
    assert b"17 bytes" in answer.body


def test_a_bug_is_one_line_and_the_server_goes_on(ask, server, monkeypatch, capfd):
    def broken() -> dict:
        raise RuntimeError("torn")

    monkeypatch.setattr(server.watch, "runs", broken)
    with pytest.raises(http.client.BadStatusLine):
        ask("/api/runs")
    monkeypatch.undo()
    assert ask("/api/runs").status == 200
    assert capfd.readouterr().err == "warning: a request was not answered (RuntimeError: torn)\n"
