"""`python -m jepa_lm.live`: mistakes are one line, and Ctrl-C ends it quietly."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from jepa_lm.live import server
from jepa_lm.live.__main__ import main
from tests.study.sweeps import write_run


@pytest.fixture
def logs(tmp_path):
    write_run(tmp_path / "logs" / "run", 1.7)
    return tmp_path / "logs"


def error(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("error: ")
    return told.err


def test_no_folder(tmp_path, capsys, logs):
    assert "no such folder; did you mean" in error(capsys, str(tmp_path / "log"))


def test_no_runs(tmp_path, capsys):
    assert "no runs below it" in error(capsys, str(tmp_path))


def test_a_port_that_is_taken(capsys, logs):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        told = error(capsys, str(logs), "--port", str(port))
    assert f"--port {port}: 127.0.0.1:{port} cannot be used (Address already in use)" in told


@pytest.mark.parametrize("port", [["--port"], ["--port", "70000"], ["--port=x"], ["--port", "-1"]])
def test_no_port(capsys, logs, port):
    assert "must be a number from 0 to 65535" in error(capsys, str(logs), *port)


def test_unknown_words(capsys, logs):
    assert "--prot: no such option" in error(capsys, str(logs), "--prot")
    assert "one folder at most" in error(capsys, str(logs), str(logs))


def test_ctrl_c_ends_it_quietly(capsys, logs, monkeypatch):
    def interrupted(self: server.Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.Server, "serve_forever", interrupted)
    assert main([str(logs), "--port=0"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("http://127.0.0.1:")
    assert told.err == "\n"


def test_the_process_itself(logs):
    command = [sys.executable, "-m", "jepa_lm.live", str(logs), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The shell may have started these tests in the background, where Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            address = process.stdout.readline().split()[0]
            page = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                address, timeout=120
            )
            assert b"runs below" in page.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
        finally:
            process.kill()
        assert process.stderr.read() == "\n"
