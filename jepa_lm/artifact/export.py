"""export(cfg): a checkpoint's model, quantized and compressed, with its size account."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from jepa_lm.artifact.container import Written, write_artifact
from jepa_lm.artifact.size import code_bytes
from jepa_lm.checkpoint import (
    find_checkpoint,
    inference_model,
    portable,
    read_checkpoint,
    shipped_weights,
)
from jepa_lm.config import check_node, check_schema, resolve
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.errors import OverCapError, UserError
from jepa_lm.evaluation.bpb import ByteCounter
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.evaluation.subject import pick_device
from jepa_lm.evaluation.temperature import SEARCH, check_temperature, search_temperature
from jepa_lm.model import LanguageModel
from jepa_lm.precision import resolve_precision
from jepa_lm.quantization.policy import Policy
from jepa_lm.quantization.training import stored_copy
from jepa_lm.records import git_state, versions, write_json
from jepa_lm.schema import ExportConfig


def export(cfg: DictConfig) -> float:
    """Write artifact.<ext> and export.json, and reload the file in a fresh process.

    Returns:
        Bytes of artifact and code.

    Raises:
        UserError: a bad checkpoint or policy, or a file that a fresh process cannot load.
        OverCapError: artifact and code do not fit the cap; both files are written all the same.
    """
    config = resolve(cfg)
    check_schema(config, ExportConfig)
    path = find_checkpoint(config["ckpt_path"])
    checkpoint = read_checkpoint(path)
    run = checkpoint["hyper_parameters"]["config"]
    quantization = config["quantization"] or run["quantization"]
    check_node("quantization", quantization)
    policy: Policy = instantiate(quantization, _convert_="all")
    model = inference_model(checkpoint)
    formats = policy.assign(model)
    search = _temperature(config, checkpoint, stored_copy(model, formats))
    data = {key: value for key, value in run["data"].items() if key != "cache_dir"}
    meta = {
        "model": portable(run["model"]),
        "data": data,
        "temperature": search["temperature"],
        "eval": run["eval"],
        "precision": run["trainer"]["precision"],
        "tokenizer": checkpoint["tokenizer"],
        "seed": run["seed"],
        "steps": checkpoint["global_step"],
        "git": git_state(),
        "versions": versions(),
    }
    folder = Path(config["paths"]["run_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    written = write_artifact(folder, dict(model.named_parameters()), formats, meta)
    _reload_in_fresh_process(written.path)
    account = _account(written, config["cap_bytes"], path) | {
        "weights": shipped_weights(checkpoint),
        "temperature": search,
    }
    write_json(folder / "export.json", account)
    _print(account, folder)
    if not account["fits"]:
        raise OverCapError(
            f"cap_bytes={config['cap_bytes']}: artifact {account['bytes']} + code "
            f"{account['code_bytes']} = {account['total']} bytes, over by "
            f"{account['total'] - config['cap_bytes']}; choose fewer bits or a smaller model"
        )
    return float(account["total"])


def _temperature(
    config: dict[str, Any], checkpoint: dict[str, Any], model: LanguageModel
) -> dict[str, Any]:
    """`temperature`, and how it was found when it was searched."""
    run = checkpoint["hyper_parameters"]["config"]
    asked = run["temperature"] if config["temperature"] is None else config["temperature"]
    check_temperature("temperature", asked)
    if asked != SEARCH:
        return {"temperature": float(asked)}
    data: TokenDataModule = instantiate(run["data"], _convert_="all")
    data.prepare_data()
    data.setup()
    if checkpoint["tokenizer"] != data.tokenizer.fingerprint:
        raise UserError(
            "temperature=search: the training data has another tokenizer now than the run had; give "
            "a number, or the data the model was trained on"
        )
    device = pick_device(config["device"])
    scorer = Scorer(
        model=model,
        byte_counter=ByteCounter(data.tokenizer.token_bytes()),
        device=device,
        precision=resolve_precision(run["trainer"]["precision"], device.type),
    )
    rows = max(1, data.val_batch_tokens // data.seq_len)
    return search_temperature(scorer, data.streams["train"], seq_len=data.seq_len, rows=rows)


def _reload_in_fresh_process(path: Path) -> None:
    """Load the file strictly where nothing of this process's live model can help."""
    program = (
        "import sys, pathlib; from jepa_lm.artifact.container import load_artifact; "
        "load_artifact(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"export: a fresh process cannot load {path}: {reason[0]}")


def _account(written: Written, cap: int, source: Path) -> dict[str, Any]:
    """The contents of export.json; sizes are those of the files on disk."""
    code = code_bytes()
    total = written.bytes + code
    return {
        "artifact": str(written.path),
        "source": str(source),
        "bytes": written.bytes,
        "code_bytes": code,
        "total": total,
        "cap": cap,
        "headroom": cap - total,
        "fits": total <= cap,
        "codec": written.codec,
        "compressors": written.compressors,
        "tensors": written.tensors,
    }


def _print(account: dict[str, Any], folder: Path) -> None:
    console = Console(highlight=False)
    by_format: dict[str, list[int]] = {}
    for row in account["tensors"]:
        by_format.setdefault(row["format"], []).append(row["bytes"])
    table = Table(title=Path(account["artifact"]).name, show_header=False)
    for name, sizes in by_format.items():
        table.add_row(f"{len(sizes)} tensors in {name}", f"{sum(sizes):,} bytes before compression")
    for name, size in account["compressors"].items():
        table.add_row(
            f"compressed by {name}", f"{size:,} bytes{' (chosen)' * (name == account['codec'])}"
        )
    if "tokens" in account["temperature"]:
        found = account["temperature"]
        table.add_row(
            "temperature",
            f"{found['temperature']:g}, searched on {found['tokens']:,} training tokens",
        )
    table.add_row("artifact on disk", f"[bold]{account['bytes']:,}[/bold] bytes")
    table.add_row("code", f"{account['code_bytes']:,} bytes")
    table.add_row("total of the cap", f"{account['total']:,} of {account['cap']:,} bytes")
    console.print(table)
    console.print(f"written to {folder / 'export.json'}", soft_wrap=True)
