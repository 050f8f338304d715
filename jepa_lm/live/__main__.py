"""Watch runs while they train, on a page in the browser; only this machine can open it.

python -m jepa_lm.live [FOLDER] [--port N]     FOLDER: of the runs (default: logs)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from jepa_lm.live.server import HERE, Server
from jepa_lm.study.listing import missing
from jepa_lm.study.runs import find_runs
from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.output import say
from jepa_lm.utils.paths import LOGS, called
from jepa_lm.utils.quoting import shell

USAGE = "python -m jepa_lm.live [FOLDER] [--port N]"
PORT = 8642


def main(arguments: list[str]) -> int:
    """Serve the page until Ctrl-C; return the exit code: 0, or 2 after one line that says what is wrong."""
    return command(lambda: _do(arguments))


def _do(arguments: list[str]) -> None:
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return
    folder, port = _parsed(arguments)
    if not folder.is_dir():
        raise missing(folder)
    if next(find_runs(folder), None) is None:
        raise UserError(
            f"{folder}: no runs below it; `{shell(called('train'))}` starts one, and runs below another "
            "folder are shown by python -m jepa_lm.live FOLDER"
        )
    try:
        server = Server(folder, port)
    except OSError as error:
        raise UserError(
            f"--port {port}: {HERE}:{port} cannot be used ({error.strerror}); choose another, or 0 for any "
            "that is free"
        ) from error
    with server:
        say(f"{server.url} shows the runs below {folder}; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)  # the shell's prompt starts on a line of its own


def _parsed(arguments: list[str]) -> tuple[Path, int]:
    """Return folder and port.

    Raises:
        UserError: naming the argument.
    """
    names, port, left = [], str(PORT), list(arguments)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name == "--port":
            port = value if equals else left.pop(0) if left else ""
        elif word.startswith("-"):
            raise UserError(f"{word}: no such option; expected {USAGE}")
        else:
            names.append(word)
    if len(names) > 1:
        raise UserError(f"{' '.join(names)}: one folder at most; expected {USAGE}")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise UserError(f"--port {port or '(nothing)'}: must be a number from 0 to 65535")
    return Path((*names, str(LOGS))[0]), int(port)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
