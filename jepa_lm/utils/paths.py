"""The config folder with its objectives, the folder of all runs, and the files in a run's folder."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
LOGS = Path("logs")
"""Default folder of all runs, below the working directory."""
CONFIG_FILE, SUMMARY_FILE, METRICS_FILE = "config.json", "summary.json", "metrics.csv"
"""Records of a run: the resolved config that it started with, its results, and its measurements by step."""
PAGE_FILE, SAMPLE_FILE = "run.html", "sample.txt"
"""What a finished run keeps for readers: a page about it, and text that its model wrote."""


def objectives(folder: Path = CONF / "objective") -> list[str]:
    """Return the objectives without `none`, recipes and variants (`lewm_byte` is a variant of `lewm`)."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    known = [name for name in names if name not in ("base", "none")]
    return [n for n in known if not any(n.startswith(f"{other}_") for other in known)]
