"""evaluate(cfg): score a checkpoint or an artifact on the whole validation split."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from jepa_lm import process
from jepa_lm.config import check_node, check_schema, resolve
from jepa_lm.data.token_data import TokenData
from jepa_lm.errors import UserError, warn
from jepa_lm.evaluation.baselines import cached_baselines, split_text
from jepa_lm.evaluation.bpb import audit_bytes, score_from_sums
from jepa_lm.evaluation.protocols import check_protocol, details, score_split
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.evaluation.subject import Subject, load_data, load_subject, pick_device
from jepa_lm.evaluation.temperature import SEARCH, check_temperature
from jepa_lm.files import write_json
from jepa_lm.loggers.recording import recording_job
from jepa_lm.loggers.settings import shared_settings
from jepa_lm.precision import resolve_precision
from jepa_lm.records import git_state, versions
from jepa_lm.schema import EvalConfig
from jepa_lm.trusted import Trust

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def evaluate(cfg: DictConfig) -> float:
    """Score, print a table, write eval.json.

    Returns:
        Bits per byte.

    Raises:
        UserError: nothing or two things to score, damaged files, data that does not fit the model.
    """
    config = resolve(cfg)
    check_schema(config, EvalConfig)
    check_node("logger", config["logger"])
    _check(config["eval"], config["devices"])
    subject, data = _load(config)
    device = pick_device(config["device"])
    if device.type == "cuda" and config["devices"] > torch.cuda.device_count():
        raise UserError(
            f"devices={config['devices']}: this machine has {torch.cuda.device_count()} GPUs"
        )
    path = Path(config["paths"]["run_dir"]) / "eval.json"
    shared = _shared(subject)
    with recording_job(config, "eval", run=subject.run, shared=shared) as records:
        result = _result(config, subject, data, device)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        records.summary(result, [path])
    _print(result, path)
    if not result["in_time"]:
        warn(
            f"scoring took {result['seconds']:.0f} s, more than "
            f"eval.max_seconds={result['max_seconds']:g}; a larger eval.stride or more devices are faster"
        )
    return float(result["bpb"])


def _check(settings: dict[str, Any], devices: int) -> None:
    check_protocol(settings, devices)
    if settings["temperature"] is not None:
        check_temperature("eval.temperature", settings["temperature"])
        if settings["temperature"] == SEARCH:
            raise UserError("eval.temperature=search: export.py searches it, on training tokens")
    if devices < 1:
        raise UserError(f"devices={devices}: at least 1")


def _shared(subject: Subject) -> dict[str, Any]:
    """What W&B runs of the subject's training share; an artifact's is in the export.json beside it."""
    if subject.run:
        return shared_settings(subject.run)
    beside = subject.source.parent / "export.json"
    try:
        return dict(json.loads(beside.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):  # the file was moved away from it
        return {}


def _result(
    config: dict[str, Any], subject: Subject, data: TokenData, device: torch.device
) -> dict[str, Any]:
    """Score; returns the contents of eval.json."""
    settings = config["eval"]
    sums, seconds = _measure(config, subject, data, device)
    result = {
        "protocol": settings["protocol"],
        **details(settings, subject),
        **score_from_sums(*sums).as_dict(),
        "seconds": seconds,
        "max_seconds": settings["max_seconds"],
        "in_time": seconds <= settings["max_seconds"],
        "seq_len": data.seq_len,
        "temperature": _temperature(settings, subject),
        "precision": _precision(settings, subject, device),
        "device": device.type,
        "devices": config["devices"],
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
    return result


def _load(config: dict[str, Any]) -> tuple[Subject, TokenData]:
    """The model and the validation data that it was trained beside."""
    settings = config["eval"]
    subject = load_subject(config["ckpt_path"], config["artifact_path"], Trust.of(config))
    changes = {
        "cache_dir": config["paths"]["cache"],
        "seq_len": settings["seq_len"] or subject.data["seq_len"],
        "val_batch_tokens": settings["batch_tokens"] or subject.data["val_batch_tokens"],
    }
    return subject, load_data(subject, changes)


def _measure(
    config: dict[str, Any], subject: Subject, data: TokenData, device: torch.device
) -> tuple[list[float], float]:
    """Nats, targets and bytes over all processes, and the seconds it took."""
    if config["devices"] == 1:
        return _share(config, subject, data, device, rank=0, world_size=1)
    from lightning.fabric import Fabric  # seconds to import, for several processes alone

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    fabric = Fabric(accelerator=device.type, devices=config["devices"], strategy="ddp_spawn")
    return fabric.launch(_worker, config)  # type: ignore[arg-type]


def _worker(fabric: Fabric, config: dict[str, Any]) -> tuple[list[float], float]:
    """One of several processes: it loads everything itself and scores its share."""
    process.tune()
    if fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    subject, data = _load(config)
    sums, seconds = _share(
        config, subject, data, fabric.device, rank=fabric.global_rank, world_size=fabric.world_size
    )
    total = fabric.all_reduce(torch.tensor(sums, dtype=torch.float64), reduce_op="sum")
    slowest = fabric.all_reduce(torch.tensor(seconds), reduce_op="max")
    assert isinstance(total, torch.Tensor)
    assert isinstance(slowest, torch.Tensor)
    result = total.tolist(), slowest.item()
    # A process that ends before its threads of gloo have been told to is aborted.
    fabric.barrier()
    torch.distributed.destroy_process_group()
    return result


def _share(
    config: dict[str, Any],
    subject: Subject,
    data: TokenData,
    device: torch.device,
    *,
    rank: int,
    world_size: int,
) -> tuple[list[float], float]:
    settings = config["eval"]
    precision = settings["precision"] or subject.precision
    scorer = Scorer.of(subject.model, data.tokenizer, device, precision)._replace(
        temperature=_temperature(settings, subject), rank=rank, world_size=world_size
    )
    began = time.perf_counter()
    sums = score_split(scorer, data, settings, subject).tolist()
    return sums, time.perf_counter() - began


def _temperature(settings: dict[str, Any], subject: Subject) -> float:
    given = settings["temperature"]
    return subject.temperature if given is None else float(given)


def _precision(settings: dict[str, Any], subject: Subject, device: torch.device) -> str:
    return resolve_precision(settings["precision"] or subject.precision, device.type)


def _audit(data: TokenData) -> dict[str, Any]:
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


def _print(result: dict[str, Any], path: Path) -> None:
    console = Console(highlight=False)
    table = Table(title=Path(result["source"]).name, show_header=False)
    table.add_row("protocol", _protocol_in_words(result))
    table.add_row("nats per token", f"{result['nll']:.6f}")
    table.add_row("bits per byte", f"[bold]{result['bpb']:.6f}[/bold]")
    table.add_row("tokens", f"{result['tokens']:,}")
    table.add_row("bytes", f"{result['bytes']:,}")
    if result["temperature"] != 1:
        table.add_row("temperature", f"{result['temperature']:g}")
    table.add_row("seconds", f"{result['seconds']:.1f} of {result['max_seconds']:g}")
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
