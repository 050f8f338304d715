"""submission.json and the model card: what the run's own records say, and nothing else."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from omegaconf import OmegaConf

TEMPLATE = "model_card.md.j2"


def run_records(checkpoint: Path) -> dict[str, Any]:
    """`summary`, and the command line's `overrides`, from the run's folder; None for what is not there."""
    folder = checkpoint.parent.parent
    summary, overrides = folder / "summary.json", folder / ".hydra" / "overrides.yaml"
    return {
        "summary": json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None,
        "overrides": list(OmegaConf.load(overrides)) if overrides.is_file() else None,
    }


def submission(
    given: dict[str, Any], account: dict[str, Any], run: dict[str, Any], records: dict[str, Any]
) -> dict[str, Any]:
    """The contents of submission.json.

    Args:
        given: what the user said about themselves. account: export.json. run: the run's resolved config.
    """
    protocol, scores = _best(account["round_trip"])
    summary = records["summary"] or {}
    return {
        "author": given["author"],
        "github_id": given["github_id"],
        "name": given["name"] or run["task_name"],
        "blurb": given["blurb"] or in_words(account, run),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "val_loss": scores and scores["artifact"]["nll"],
        "val_bpb": scores and scores["artifact"]["bpb"],
        "val_protocol": protocol,
        "val_tokens": scores and scores["artifact"]["tokens"],
        "val_complete": scores and account["scored_all"],
        "bytes_total": account["total"],
        "bytes_model": account["bytes"],
        "bytes_code": account["code_bytes"],
        "code": account["code"],
        "fits": account["fits"],
        "seed": run["seed"],
        "steps": account["steps"],
        "training_seconds": summary.get("seconds"),
        "training_status": summary.get("status"),
        "config_hash": summary.get("config_hash"),
        "git": summary.get("git"),
    }


def in_words(account: dict[str, Any], run: dict[str, Any]) -> str:
    """One sentence on the model."""
    backbone = run["model"]["backbone"]
    kind = backbone["_target_"].rpartition(".")[2]
    objective = "cross entropy alone"
    if "_target_" in run["jepa"]:
        objective = f"a latent loss of weight {run['jepa']['weight']:g} beside cross entropy"
    return (
        f"{kind}, {backbone['layers']} layers of width {run['model']['dim']}, "
        f"{account['parameters']:,} parameters, {objective}, stored as {_formats(account)}"
    )


def model_card(
    submission: dict[str, Any],
    account: dict[str, Any],
    run: dict[str, Any],
    records: dict[str, Any],
) -> str:
    """The card in Markdown."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        submission=submission,
        account=account,
        run=run,
        summary=records["summary"],
        overrides=records["overrides"],
        sentence=in_words(account, run),
        formats=by_format(account["tensors"]),
        file=Path(account["artifact"]).name,
        corpus=run["data"]["corpus"]["_target_"].rpartition(".")[2],
        tokenizer=run["data"]["tokenizer"]["_target_"].rpartition(".")[2],
    )


def _best(scores: dict[str, Any]) -> tuple[str | None, Any]:
    """The protocol with the most context that was scored, and its scores."""
    for protocol in ("sliding", "standard"):
        if protocol in scores:
            return protocol, scores[protocol]
    return None, None


def by_format(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tensors, values and bytes before compression of each format, the commonest first."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"tensors": 0, "values": 0, "bytes": 0})
    for row in tensors:
        entry = found[row["format"]]
        entry["tensors"] += 1
        entry["values"] += row["values"]
        entry["bytes"] += row["bytes"]
    return sorted(({"format": k, **v} for k, v in found.items()), key=lambda e: -e["values"])


def _formats(account: dict[str, Any]) -> str:
    return ", ".join(entry["format"] for entry in by_format(account["tensors"]))
