"""Print the result of export.py: the size breakdown, the scores, and ways to fit under the cap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jepa_lm.artifact.card import by_format
from jepa_lm.artifact.size import INFERENCE
from jepa_lm.evaluation.bpb import unit_and_value
from jepa_lm.utils.console import Screen
from jepa_lm.utils.errors import LossError, OverCapError
from jepa_lm.utils.metrics import ABOVE_LAW
from jepa_lm.utils.quoting import shell


def print_account(account: dict[str, Any], folder: Path) -> None:
    """Print the tables to stdout."""
    console = Screen()
    table = Table(title=Path(account["artifact"]).name, show_header=False)
    for row in _stored(account) + _compression(account) + _scores(account):
        table.add_row(*row)
    table.add_row("artifact on disk", Text(f"{account['bytes']:,} bytes", style="bold"))
    if account["tokenizer_bytes"]:
        table.add_row("of which the tokenizer", f"{account['tokenizer_bytes']:,} bytes")
    off = account["predicted"]["off"]
    table.add_row("weights, predicted", f"{account['predicted']['bytes']:,} bytes ({off:+.1%})")
    table.add_row(f"code, {account['code']}", f"{account['code_bytes']:,} bytes")
    table.add_row("total", f"{account['total']:,} of {account['cap']:,} bytes allowed")
    console.print(table)
    if not account["fits"] and account["ways_under"]:
        console.print(_ways(account["ways_under"]))
    console.print(f"written to {folder / 'export.json'}", soft_wrap=True)


def judge(account: dict[str, Any], max_bpb_loss: float) -> None:
    """Check that the artifact fits under the cap and has not lost too much.

    Raises:
        OverCapError, LossError: with the figures and what would help.
    """
    if not account["fits"]:
        ways = ways_in_words(account["ways_under"])
        if not account["ways_under"] and account["code_bytes"] >= account["cap"]:
            less = (
                ""
                if account["code"] == INFERENCE
                else ", or count less code (export.code=inference)"
            )
            ways = f"the code alone exceeds the cap; raise it{less}"
        raise OverCapError(
            f"export.cap_bytes={account['cap']}: artifact {account['bytes']} + code "
            f"{account['code_bytes']} = {account['total']} bytes, over by {-account['headroom']}; {ways}"
        )
    for protocol, scores in account["round_trip"].items():
        if not scores["bpb_loss"] <= max_bpb_loss:  # NaN must fail too
            raise LossError(
                f"export.max_bpb_loss={max_bpb_loss:g}: the artifact scores "
                f"{unit_and_value(scores['artifact'])[1]:.4f} ({protocol}), "
                f"{scores['bpb_loss']:.4f} above its "
                "checkpoint; choose more bits, GPTQ (+quantization/gptq=training), or "
                "quantization-aware training (quantization.training.start)"
            )


def ways_in_words(ways: list[dict[str, Any]]) -> str:
    """Return the ways to fit as a phrase for an error message."""
    if not ways:
        return "none of the options tried fits; choose a smaller model"
    return "it would fit with " + ", or with ".join(
        f"{shell(way['overrides'])} ({way['total']} bytes, BPB {way['bpb_loss']:+.4f})"
        for way in ways
    )


def _stored(account: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (
            f"{row['tensors']} tensors in {row['format']}",
            f"{row['bytes']:,} bytes before compression",
        )
        for row in by_format(account["tensors"])
    ]
    if account["gptq"]:
        report = account["gptq"]
        share = f"kept for {report['kept_gptq']:.0%} of {len(report['matrices'])} matrices"
        rows.append(("GPTQ", f"{share}, {report['tokens']:,} tokens of {report['text']} text"))
    return rows


def _compression(account: dict[str, Any]) -> list[tuple[str, str]]:
    alone = account["codecs"][0] if len(account["codecs"]) == 1 else None
    return [
        (f"compressed by {name}", f"{size:,} bytes{' (chosen)' * (name == alone)}")
        for name, size in account["compressors"].items()
    ]


def _scores(account: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if "tokens" in account["temperature"]:
        found = account["temperature"]
        said = f"{found['temperature']:g}, searched on {found['tokens']:,} training tokens"
        rows.append(("temperature", said))
    for protocol, scores in account["round_trip"].items():
        (unit, artifact), (_, checkpoint) = map(
            unit_and_value, (scores["artifact"], scores["checkpoint"])
        )
        said = f"{artifact:.4f}, checkpoint {checkpoint:.4f}"
        rows.append((f"{unit}, {protocol}", f"{said} ({scores['bpb_loss']:+.4f})"))
        if (floor := scores["floor"]) is not None:
            rows.append((f"{ABOVE_LAW}, {protocol}", f"{scores['artifact']['nll'] - floor:.4f}"))
    return rows


def _ways(ways: list[dict[str, Any]]) -> Table:
    table = Table(title="ways to fit under the cap, measured on training text")
    for column in ("override", "total bytes", "BPB"):
        table.add_column(column, overflow="fold")
    for way in ways:
        row = (
            shell(way["overrides"]),
            f"{way['total']:,}",
            f"{way['bpb_loss']:+.4f}",
        )
        table.add_row(*row)
    return table
