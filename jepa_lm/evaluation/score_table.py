"""The table that eval.py prints from eval.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jepa_lm.utils.console import Screen
from jepa_lm.utils.metrics import ABOVE_LAW, LOSSES, METRICS, key_of, measured


def print_result(result: dict[str, Any], path: Path) -> None:
    """Print the table of scores, and the path of eval.json."""
    console = Screen()
    table = Table(title=Path(result["source"]).name, show_header=False)
    table.add_row("protocol", _protocol_in_words(result))
    if result["text"] is not None:
        table.add_row("text", result["text"])
    table.add_row("nats per token", f"{result['nll']:.6f}")
    if result["bpb"] is not None:
        table.add_row("bits per byte", Text(f"{result['bpb']:.6f}", style="bold"))
    for metric in measured(result):
        if metric not in LOSSES:
            table.add_row(METRICS[metric].says, f"{result[key_of(metric)]:.6f}")
    if "floor" in result:
        table.add_row(ABOVE_LAW, f"{result['above_floor']:.6f}")
    table.add_row("tokens", f"{result['tokens']:,}")
    table.add_row("bytes", f"{result['bytes']:,}")
    if result["temperature"] != 1:
        table.add_row("temperature", f"{result['temperature']:g}")
    table.add_row("seconds", f"{result['seconds']:.1f} of {result['max_seconds']:g}")
    if "audit" in result:
        table.add_row("byte count", byte_count_in_words(result["audit"]))
    for name, bits in result.get("baselines", {}).items():
        table.add_row(f"for comparison: {name}", f"{bits:.3f} bits per byte")
    console.print(table)
    console.print(f"written to {path}", soft_wrap=True)


def _protocol_in_words(result: dict[str, Any]) -> str:
    words = f"{result['protocol']}, windows of {result['seq_len']} tokens"
    if result["protocol"] == "sliding":
        return f"{words}, stride {result['stride']}"
    if result["protocol"] == "stream":
        return "stream, " + (
            "state carried over the whole text"
            if result["reset"] == "none"
            else "state empty at the start of each document"
        )
    return words


def byte_count_in_words(audit: dict[str, Any]) -> str:
    """Describe the number of bytes that the score was divided by, and how it was checked."""
    decoded = f"{audit['decoded_bytes']:,} bytes"
    if audit["lossless"] is False:
        return (
            f"{audit['source_bytes']:,} bytes of the original text; the tokenizer changes it: the decoded "
            f"text ({decoded}) differs"
        )
    if audit["matches"]:
        same = ", which equals the original text" if audit["lossless"] else ""
        return f"matches the decoded text{same} ({decoded})"
    if audit["lossless"]:
        return f"{decoded} of the original text; the tokenizer's table of bytes is wrong"
    return f"[red]DIFFERS from the decoded text[/red] ({decoded})"
