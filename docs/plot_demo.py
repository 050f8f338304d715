"""Draw the demo's loss curve from a run's metrics.csv: docs/demo.svg and docs/demo.png.

python -m docs.plot_demo [RUN_FOLDER]     (default: the newest run of the demo)
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent
RUNS = DOCS.parent / "logs" / "demo" / "runs"
BROTLI = 2.044
"""Bits per byte of brotli on the validation text after the training text, from eval.json."""


def main(folder: Path) -> None:
    """Read the run, draw, write."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["train/bpb"]]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    seconds = [float(row["train/seconds"]) for row in rows]
    bits = [float(row["train/bpb"]) for row in rows]
    val = summary["val"]["bpb"]
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(seconds, bits, color="#4477aa", linewidth=1.5, label="training batches")
    axes.plot(
        [summary["seconds"]],
        [val],
        "o",
        color="#ee6677",
        label=f"validation, whole novel: {val:.3f}",
    )
    axes.axhline(
        BROTLI, color="#888888", linestyle="--", linewidth=1, label=f"brotli: {BROTLI:.3f}"
    )
    axes.set_xlabel("seconds of training on two processor cores")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_ylim(1.2, 3.2)
    axes.set_title(
        f"Five Austen novels in, Persuasion out: {summary['parameters']['shipped'] / 1e6:.1f} M "
        f"parameters, {summary['tokens'] / 1e6:.1f} M tokens"
    )
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(DOCS / "demo.svg", facecolor="white", metadata={"Date": None})
    figure.savefig(DOCS / "demo.png", facecolor="white", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else max(RUNS.iterdir()))
