"""The config folder and its objectives, names of commands, and where runs and their records are."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""Folder `jepa_lm`; `hydra_plugins` is beside it, in a checkout and installed."""


def _conf() -> Path:
    """Return `conf/` of the checkout that holds this package; installed, it is a folder of the package."""
    checkout = PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "conf" / "train.yaml").is_file():
        return checkout / "conf"
    return PACKAGE / "conf"


CONF = _conf()


def program(command: str) -> str:
    """Return the name of `train`, `eval` or `export` as the user types it: `train.py` or `jepa-train`."""
    installed = CONF.parent == PACKAGE or Path(sys.argv[0]).stem.startswith("jepa-")
    return f"jepa-{command}" if installed else f"{command}.py"


def called(command: str) -> list[str]:
    """Return the words that start a command."""
    name = program(command)
    return ["python", name] if name.endswith(".py") else [name]


LOGS = Path("logs")
"""Default folder of all runs, below the working directory."""
CONFIG_FILE, SUMMARY_FILE, METRICS_FILE = "config.json", "summary.json", "metrics.csv"
"""Records of a run: the resolved config that it started with, its results, and its measurements by step."""
PAGE_FILE, SAMPLE_FILE = "run.html", "sample.txt"
"""What a finished run keeps for readers: a page about it, and text that its model wrote."""

TOKENIZER_FILE = "tokenizer.model"
"""The tokenizer, in the folders of runs and exports and in the cache; a byte tokenizer has none."""


INHERITED = "base"
"""Option of a config group that the others inherit; it leaves out what each of them sets."""


def options(group: str | Path) -> list[str]:
    """Return the options of a config group that may be chosen; none if there is no such group."""
    names = (path.stem for path in (CONF / group).glob("*.yaml"))
    return sorted(name for name in names if name != INHERITED)


def token_objectives() -> list[str]:
    """Return the choices of the group `tokens` without `none`; each is a choice of `objective` as well."""
    return [name for name in options("tokens") if name != "none"]


def objectives(folder: Path = CONF / "objective") -> list[str]:
    """Return the latent objectives without recipes and variants (`lewm_byte` is a variant of `lewm`)."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    known = [name for name in names if name not in (INHERITED, "none", *token_objectives())]
    return [n for n in known if not any(n.startswith(f"{other}_") for other in known)]
