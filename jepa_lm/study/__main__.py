"""Report on sweeps and list runs in the terminal.

python -m jepa_lm.study FOLDER           rebuild the report of a sweep or study
python -m jepa_lm.study ls [FOLDER]      list the runs below a folder (default: logs), latest last; --json
python -m jepa_lm.study compare A B      compare two runs: scores, settings, versions
python -m jepa_lm.study export FOLDER    pack all records of a sweep or study into FOLDER.zip
python -m jepa_lm.study FILE.zip         unpack such a file beside it, and rebuild its report

Installed, it is also `jepa-study`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jepa_lm.study import listing as store
from jepa_lm.study import packing
from jepa_lm.utils.console import Screen
from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.output import say
from jepa_lm.utils.paths import LOGS

NAME = "jepa-study" if Path(sys.argv[0]).stem == "jepa-study" else "python -m jepa_lm.study"
USAGE = f"{NAME} FOLDER or FILE.zip, {NAME} ls [FOLDER] [--json], {NAME} compare A B, or {NAME} export FOLDER"
PIPED_WIDTH = 200
MOST_TOLD = 5
"""Largest number of damaged entries that a list names."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 2 after one line that says what is wrong.

    See `jepa_lm.utils.crash`.

    Args:
        arguments: words behind the command's name; None for those of this process.
    """
    return command(lambda: _do(sys.argv[1:] if arguments is None else arguments))


def _do(arguments: list[str]) -> None:
    match arguments:
        case ["ls", *rest] if not _options(rest) - {"--json"} and len(_names(rest)) <= 1:
            _list(Path((*_names(rest), str(LOGS))[0]), as_json="--json" in rest)
        case ["compare", left, right]:
            _compare(Path(left), Path(right))
        case ["export", folder] if not folder.startswith("-"):
            say(f"written to {packing.pack(Path(folder))}")
        case [folder] if folder not in ("ls", "compare", "export") and not folder.startswith("-"):
            _report(Path(folder))
        case ["--help" | "-h"]:
            print(__doc__)
        case ["compare", *runs]:
            raise UserError(f"compare: {len(runs)} given; it takes two runs")
        case _:
            raise UserError(f"{' '.join(arguments) or 'nothing given'}: expected {USAGE}")


def _report(folder: Path) -> None:
    # Figures take a second to import, and the lists do not need them.
    from jepa_lm.study.report import tell

    if folder.is_file() and folder.suffix == packing.SUFFIX:
        folder = packing.unpack(folder)
    if not folder.is_dir():
        raise store.missing(folder)
    say(f"written to {tell(folder, say)}")


def _list(folder: Path, *, as_json: bool) -> None:
    found = store.entries(folder)
    if as_json:
        print(json.dumps(store.as_json(found), indent=2))
    else:
        store.print_entries(found, folder, _console())
    damaged = [f"{entry.folder}: {text}" for entry in found for text in entry.damage]
    for text in damaged[:MOST_TOLD]:
        warn(text)
    if len(damaged) > MOST_TOLD:
        warn(f"and {len(damaged) - MOST_TOLD} more invalid entries in records")


def _compare(left: Path, right: Path) -> None:
    runs = store.open_run(left), store.open_run(right)
    for text in store.print_comparison(*runs, _console()):
        warn(f"these runs are not comparable: {text}")
    for run in runs:
        for text in run.damage:
            warn(f"{run.folder}: {text}")
    print("With one run on each side, the spread between seeds is unknown.")


def _console() -> Screen:
    """Return a console as wide as the terminal, or wide enough for a path if there is no terminal."""
    return Screen(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def _options(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("-")}


def _names(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith("-")]


if __name__ == "__main__":
    sys.exit(main())
