"""Start the project's programs as processes that need not import PyTorch first.

`python -m tests.processes` has imported what they need. It is forked for each program, which then runs as
`python PROGRAM` would, from its first line to its exit code, in a process of its own. A test of how a program
starts asks for a new Python: `fresh=True`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

REPO = Path(__file__).resolve().parent.parent
IMPORTED = (
    "jepa_lm.cli",
    "jepa_lm.commands.train",
    "jepa_lm.commands.export",
    "jepa_lm.commands.evaluate",
    "hydra_plugins.jepa_lm_study",
    "torch.nn.parallel",
)
_ONE_AT_A_TIME = threading.Lock()
PATIENCE = 600.0
"""Seconds that a program may take, beside much other work."""


class Program:
    """A program in a forked process: what tests use of `subprocess.Popen`."""

    returncode: int | None = None

    def __init__(self, program: str, words: tuple[str, ...], environment: dict[str, str]) -> None:
        self.args = (program, *words)
        self.printed = Path(tempfile.mkdtemp(dir=_scratch().name))
        self.pid = _asked(args=self.args, environment=environment, printed=str(self.printed))

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self.returncode is None:
            self.returncode = _asked(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end; return the exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return code

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Wait for the end; return stdout and stderr."""
        self.wait(timeout)
        return (self.printed / "1").read_text(), (self.printed / "2").read_text()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def start(program: str, *words: str, fresh: bool = False, **variables: str) -> Any:
    """Start a script of the checkout, such as `train.py`, or a module.

    Args:
        words: its arguments. fresh: in a new Python. variables: added to the environment.

    Returns:
        a `Program`, or a `subprocess.Popen` if it is fresh.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    if not fresh:
        return Program(program, words, environment)
    named = (program,) if program.endswith(".py") else ("-m", program)
    return subprocess.Popen(
        [sys.executable, *named, *words],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run(program: str, *words: str, code: int = 0, fresh: bool = False, **variables: str) -> str:
    """Run a program to its end, check its exit code and return what it printed."""
    process = start(program, *words, fresh=fresh, **variables)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()  # one that hangs; its other ranks end with it
    assert process.returncode == code, err
    return out


def wait_until(done: Callable[[], bool], process: Any) -> None:
    """Wait until a running program has done something; a busy machine may take its time."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{process.args}: nothing came"
        time.sleep(0.02)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for what programs print, until this process ends."""
    return tempfile.TemporaryDirectory(prefix="programs-")


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the process that is forked; it ends when its stdin does, with this process."""
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(server.communicate)
    return server


def _asked(**request: Any) -> Any:
    """Return the answer of the process that is forked."""
    with _ONE_AT_A_TIME:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    assert answer, "the process that is forked has ended"
    return json.loads(answer)


def main() -> None:
    """Fork for each request to start a program, and run the program in the child."""
    for name in IMPORTED:
        importlib.import_module(name)
    _compose_once()
    gc.collect()
    gc.freeze()  # or the first collection in each child would copy all of this memory
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _become(**request)
        print(json.dumps(answer), flush=True)


def _compose_once() -> None:
    """Let Hydra find its plugins and read the configs."""
    import hydra
    import pytest
    from hydra.core.global_hydra import GlobalHydra

    from jepa_lm.utils import schema
    from jepa_lm.utils.paths import CONF
    from tests import composing

    schema.register()
    composing.keep_merged_files(pytest.MonkeyPatch())
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for command in ("train", "eval", "export"):
            hydra.compose(command)
    GlobalHydra.instance().clear()


def _become(args: list[str], environment: dict[str, str], printed: str) -> NoReturn:
    """Run a program in this process, with streams and an environment of its own, and exit as it does."""
    for stream, path in enumerate((os.devnull, f"{printed}/1", f"{printed}/2")):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = _get_rank() or 0  # which Lightning read when it was imported
    sys.argv, code = args, 0
    try:
        if args[0].endswith(".py"):
            runpy.run_path(str(REPO / args[0]), run_name="__main__")
        else:
            runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What Python does at its end, without taking apart every module: that writes to all of the memory that is
    # shared with the process that was forked, and copying it takes over a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
