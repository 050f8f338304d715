"""evaluate(cfg): score a checkpoint or an artifact on the whole validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from jepa_lm.artifact.container import load_artifact
from jepa_lm.checkpoint import find_checkpoint, find_file, inference_model, read_checkpoint
from jepa_lm.config import check_schema, resolve
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.errors import UserError
from jepa_lm.evaluation.baselines import cached_baselines, split_text
from jepa_lm.evaluation.bpb import ByteCounter, audit_bytes
from jepa_lm.evaluation.standard import evaluate_windows
from jepa_lm.model import LanguageModel
from jepa_lm.own_classes import require_own_classes
from jepa_lm.precision import resolve_precision
from jepa_lm.records import git_state, versions, write_json
from jepa_lm.schema import EvalConfig

PROTOCOLS = ("standard",)


class Subject(NamedTuple):
    """What is scored: a model with the settings it was trained under."""

    source: Path
    model: LanguageModel
    data: dict[str, Any]
    precision: str
    tokenizer: str
    """Fingerprint of the tokenizer it was trained with."""


def evaluate(cfg: DictConfig) -> float:
    """Score, print a table, write eval.json.

    Returns:
        Bits per byte.

    Raises:
        UserError: nothing or two things to score, damaged files, data that does not fit the model.
    """
    config = resolve(cfg)
    check_schema(config, EvalConfig)
    settings = config["eval"]
    if settings["protocol"] not in PROTOCOLS:
        raise UserError(f"eval.protocol={settings['protocol']}: one of {', '.join(PROTOCOLS)}")
    subject = _subject(config)
    data = _data(subject, config)
    device = _device(config["device"])
    precision = resolve_precision(settings["precision"] or subject.precision, device.type)
    done = evaluate_windows(
        subject.model,
        data.val_windows(),
        ByteCounter(data.tokenizer.token_bytes()),
        device=device,
        precision=precision,
    )
    assert data.prepared is not None
    result = {
        "protocol": settings["protocol"],
        **done.score.as_dict(),
        "seconds": done.seconds,
        "seq_len": data.seq_len,
        "precision": precision,
        "source": str(subject.source),
        "source_bytes": subject.source.stat().st_size,
        "versions": versions(),
        "git": git_state(),
    }
    if settings["audit"]:
        result["audit"] = _audit(data)
    if settings["baselines"]:
        limit = settings["baseline_bytes"]
        text = split_text(data.streams["val"], data.tokenizer, limit)
        prefix = split_text(data.streams["train"], data.tokenizer, limit)
        result["baselines"] = cached_baselines(text, prefix, data.cache_dir)
        result["baselines_read_bytes"] = {"validation": len(text), "training": len(prefix)}
    path = Path(config["paths"]["run_dir"]) / "eval.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    _print(result, path)
    return done.score.bpb


def _subject(config: dict[str, Any]) -> Subject:
    """Load the checkpoint or the artifact."""
    ckpt, artifact = config["ckpt_path"], config["artifact_path"]
    if (ckpt is None) == (artifact is None):
        raise UserError(
            f"set ckpt_path or artifact_path, one of them (ckpt_path={ckpt}, artifact_path={artifact})"
        )
    if ckpt is not None:
        path = find_checkpoint(ckpt)
        checkpoint = read_checkpoint(path)
        run = checkpoint["hyper_parameters"]["config"]
        model = inference_model(checkpoint)
        precision = run["trainer"]["precision"]
        return Subject(path, model, run["data"], precision, checkpoint["tokenizer"])
    path = find_file("artifact_path", artifact, ("artifact.*",), "*/*runs/**")
    loaded = load_artifact(path)
    meta = loaded.meta
    require_own_classes(meta["data"], "jepa_lm.data", f"artifact_path={path}")
    return Subject(path, loaded.model, meta["data"], meta["precision"], meta["tokenizer"])


def _data(subject: Subject, config: dict[str, Any]) -> TokenDataModule:
    """The validation data that the model was trained beside."""
    settings = config["eval"]
    changes = {
        "cache_dir": config["paths"]["cache"],
        "seq_len": settings["seq_len"] or subject.data["seq_len"],
        "val_batch_tokens": settings["batch_tokens"] or subject.data["val_batch_tokens"],
    }
    data: TokenDataModule = instantiate({**subject.data, **changes}, _convert_="all")
    data.prepare_data()
    data.setup()
    if subject.tokenizer != data.tokenizer.fingerprint:
        raise UserError(
            f"{subject.source} was trained with another tokenizer than the data has "
            f"({subject.tokenizer[:12]}, now {data.tokenizer.fingerprint[:12]}); the text or the "
            "tokenizer file has changed"
        )
    return data


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not to be had here; auto, cpu, cuda or cuda:N") from error
    return device


def _audit(data: TokenDataModule) -> dict[str, Any]:
    assert data.prepared is not None
    text_bytes = data.prepared.text_bytes
    source = None if text_bytes is None else text_bytes["val"]
    audit = audit_bytes(data.streams["val"], data.tokenizer, source)
    return {
        "table_bytes": audit.table,
        "decoded_bytes": audit.decoded,
        "source_bytes": audit.source,
        "matches": audit.matches,
        "lossless": audit.lossless,
    }


def _print(result: dict[str, Any], path: Path) -> None:
    console = Console(highlight=False)
    table = Table(title=Path(result["source"]).name, show_header=False)
    table.add_row("protocol", f"{result['protocol']}, windows of {result['seq_len']} tokens")
    table.add_row("nats per token", f"{result['nll']:.6f}")
    table.add_row("bits per byte", f"[bold]{result['bpb']:.6f}[/bold]")
    table.add_row("tokens", f"{result['tokens']:,}")
    table.add_row("bytes", f"{result['bytes']:,}")
    table.add_row("seconds", f"{result['seconds']:.1f}")
    if "audit" in result:
        audit = result["audit"]
        ok = (
            "matches the decoded text"
            if audit["matches"]
            else "[red]DIFFERS from the decoded text[/red]"
        )
        table.add_row("byte count", f"{ok} ({audit['decoded_bytes']:,} bytes)")
        if audit["lossless"] is False:
            table.add_row(
                "lossy tokenizer",
                f"the source has {audit['source_bytes']:,} bytes: "
                f"{result['bpb'] * result['bytes'] / audit['source_bytes']:.6f} bits per source byte",
            )
    for name, bits in result.get("baselines", {}).items():
        table.add_row(f"for comparison: {name}", f"{bits:.3f} bits per byte")
    console.print(table)
    console.print(f"written to {path}", soft_wrap=True)
