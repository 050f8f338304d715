"""evaluate(cfg): score a checkpoint or an artifact on the whole validation split."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from jepa_lm.artifact.loaded_model import (
    HeldFile,
    LoadedModel,
    held_model_file,
    pick_device,
    read_model,
    weights_of,
)
from jepa_lm.artifact.publishing import ACCOUNT, belongs
from jepa_lm.artifact.text import Text, text_to_score
from jepa_lm.data.split import Split
from jepa_lm.evaluation.baselines import cached_baselines
from jepa_lm.evaluation.byte_audit import audit_bytes
from jepa_lm.evaluation.protocols import check_protocol, details, score_split, tokens_read
from jepa_lm.evaluation.score_table import print_result
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.evaluation.tasks import Tasks
from jepa_lm.loggers.recording import recording_job
from jepa_lm.loggers.settings import shared_settings
from jepa_lm.utils import process
from jepa_lm.utils.compiling import compiles_scoring
from jepa_lm.utils.config import check_node, check_schema, resolve
from jepa_lm.utils.console import busy, showing
from jepa_lm.utils.errors import RankError, UserError, warn
from jepa_lm.utils.files import read_object, sweep_up, write_json
from jepa_lm.utils.locks import only_writer
from jepa_lm.utils.paths import program
from jepa_lm.utils.precision import resolve_precision
from jepa_lm.utils.provenance import git_state, versions
from jepa_lm.utils.schema import SEARCH, EvalConfig
from jepa_lm.utils.trusted import Trust

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def evaluate(cfg: DictConfig) -> float:
    """Score, print a table, write eval.json.

    Returns:
        Bits per byte.

    Raises:
        UserError: nothing or two things to score, damaged files, or data that does not fit the model.
    """
    config = resolve(cfg)
    check_schema(config, EvalConfig)
    check_node("logger", config["logger"])
    _check(config["eval"], config["devices"])
    folder, trust = Path(config["paths"]["run_dir"]), Trust.of(config)
    device = pick_device(config["device"])
    if device.type == "cuda" and config["devices"] > torch.cuda.device_count():
        raise UserError(
            f"devices={config['devices']}: this machine has {torch.cuda.device_count()} GPUs"
        )
    with only_writer(folder, "hydra.run.dir"):
        sweep_up(folder)
        named = config["ckpt_path"], config["artifact_path"]
        with held_model_file(*named, folder, trust) as found:
            return _evaluate(config, found, trust, device, folder / "eval.json")


def _evaluate(
    config: dict[str, Any], found: HeldFile, trust: Trust, device: torch.device, path: Path
) -> float:
    """Score the model file, write the result to `path`, print it."""
    loaded, text = _load(config, found, trust)
    with recording_job(config, "eval", run=loaded.run, shared=_shared(loaded)) as records:
        result = _result(config, found, loaded, text, device)
        write_json(path, result)
        records.summary(result, [path])
    with showing("the score"):
        print_result(result, path)
    if not result["in_time"]:
        warn(
            f"scoring took {result['seconds']:.0f} s, more than "
            f"eval.max_seconds={result['max_seconds']:g}; a larger eval.stride or more devices would help"
        )
    return float(result["nll"] if result["bpb"] is None else result["bpb"])


def _check(settings: dict[str, Any], devices: int) -> None:
    check_protocol(settings, devices)
    if settings["temperature"] == SEARCH:
        raise UserError(
            f"eval.temperature=search: only {program('export')} can search, on training text"
        )
    if not settings["max_seconds"] > 0:
        raise UserError(f"eval.max_seconds={settings['max_seconds']}: a number more than 0")


def _check_text(settings: dict[str, Any], text: Text) -> None:
    """Refuse what only text has, where it is asked for: of rows, at most the bytes of answers count."""
    for name in ("audit", "baselines"):
        if settings[name] and text.val.examples is not None:
            raise UserError(
                f"eval.{name}=true: these data are rows that are examples, without a text to read; leave it "
                "at null"
            )


def _shared(loaded: LoadedModel) -> dict[str, Any]:
    """Return the settings to share with W&B runs of the training; for an artifact from its export.json."""
    if loaded.run:
        return shared_settings(loaded.run)
    if not belongs(loaded.source):  # export.json is of another export, or the file was moved
        return {}
    shared = read_object(loaded.source.parent / ACCOUNT).get("run")
    return shared if isinstance(shared, dict) else {}


def _result(
    config: dict[str, Any],
    found: HeldFile,
    loaded: LoadedModel,
    text: Text,
    device: torch.device,
) -> dict[str, Any]:
    """Score the model and return the contents of eval.json."""
    settings = config["eval"]
    _check_text(settings, text)
    source_bytes, weights = found.file.stat().st_size, weights_of(loaded)
    settings["compile"] = _compiled(settings, loaded, text.val, device, config["devices"])
    sums, seconds = _measure(config, found, weights, loaded, text, device)
    score = Tasks(text.val, text.train).score(sums)
    precision = resolve_precision(_given(settings["precision"], loaded.precision), device.type)
    if not math.isfinite(score.value):
        raise UserError(
            f"{found.key}={found.path}: its score is NaN or infinite (precision {precision}, temperature "
            f"{_temperature(settings, loaded):g}); eval.precision=32-true has the largest range"
        )
    result = {
        "protocol": settings["protocol"],
        **details(settings, loaded.stride),
        **score.as_dict(),
        "seconds": seconds,
        "max_seconds": settings["max_seconds"],
        "in_time": seconds <= settings["max_seconds"],
        "text": text.path,
        "seq_len": text.val.seq_len,
        "temperature": _temperature(settings, loaded),
        "precision": precision,
        "compiled": settings["compile"],
        "device": device.type,
        "devices": config["devices"],
        "source": str(loaded.source),
        "source_bytes": source_bytes,
        "weights_sha256": weights,
        "versions": versions(),
        "git": git_state(),
    }
    if (floor := text.val.floor) is not None:
        result |= {"floor": floor, "above_floor": score.nll - floor}
    whole = score.bpb is not None and text.val.examples is None
    if settings["audit"] is not False and whole:
        with busy("checking the byte count"):
            audited = audit_bytes(text.val.stream, text.val.tokenizer, text.val.text)
        result["audit"] = audited.as_dict()
    if settings["baselines"] is not False and whole:
        limit = settings["baseline_bytes"]
        scored = text.val.first_bytes(limit)
        prefix = b"" if text.train is None else text.train.first_bytes(limit)
        cache = Path(os.path.expanduser(config["data"]["cache_dir"]))
        with busy("compressing the text with xz and brotli"):
            result["baselines"] = cached_baselines(scored, prefix, cache)
        result["baselines_read_bytes"] = {"validation": len(scored), "training": len(prefix)}
    return result


def _compiled(
    settings: dict[str, Any], loaded: LoadedModel, split: Split, device: torch.device, devices: int
) -> bool:
    """Return whether all processes compile the model."""
    if settings["protocol"] == "stream":
        return False
    share = tokens_read(split, settings, loaded.stride) // devices
    return compiles_scoring(settings["compile"], share, device.type == "cpu")


def _load(config: dict[str, Any], found: HeldFile, trust: Trust) -> tuple[LoadedModel, Text]:
    """Load the model and the text to score."""
    settings, loaded = config["eval"], read_model(found, trust)
    sizes = {
        "seq_len": _given(settings["seq_len"], loaded.data["seq_len"]),
        "batch_tokens": _given(settings["batch_tokens"], loaded.data["val_batch_tokens"]),
    }
    try:
        return loaded, text_to_score(loaded, **config["data"], **sizes)
    except UserError as error:
        if settings["seq_len"] is None:
            raise
        raise UserError(str(error).replace("data.seq_len=", "eval.seq_len=")) from error


def _given(value: Any, otherwise: Any) -> Any:
    """Return a setting, or `otherwise` if it is null. Zero is a setting."""
    return otherwise if value is None else value


def _measure(
    config: dict[str, Any],
    found: HeldFile,
    weights: str,
    loaded: LoadedModel,
    text: Text,
    device: torch.device,
) -> tuple[list[float], float]:
    """Return the sums over all processes that `Tasks.score` reads, and the seconds of scoring."""
    count = config["devices"]
    if count == 1:
        return _share(config, loaded, text, device, rank=0, world_size=1)
    # Slow to import, and only several processes need it.
    from lightning.fabric import Fabric
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    fabric = Fabric(accelerator=device.type, devices=count, strategy="ddp_spawn")
    try:
        return fabric.launch(_worker, config, found, weights)  # type: ignore[arg-type]
    except ProcessRaisedException as error:
        kind, _, message = str(error).strip().rpartition("\n")[2].partition(": ")
        if kind != f"{UserError.__module__}.{UserError.__qualname__}":
            raise
        raise UserError(message) from error
    except ProcessExitedException as error:
        raise RankError(f"devices={count}: {error}") from error


def _worker(
    fabric: Fabric, config: dict[str, Any], found: HeldFile, weights: str
) -> tuple[list[float], float]:
    """Load everything and score this process's share.

    Args:
        weights: hash of the weights that all processes must score.
    """
    process.tune()
    if fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    loaded, text = _load(config, found, Trust.of(config))
    if weights_of(loaded) != weights:
        raise UserError(
            f"{found.key}={found.path}: the file changed while it was loaded; run the command again"
        )
    ranks = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    sums, seconds = _share(config, loaded, text, fabric.device, **ranks)
    total = fabric.all_reduce(torch.tensor(sums, dtype=torch.float64), reduce_op="sum")
    slowest = fabric.all_reduce(torch.tensor(seconds), reduce_op="max")
    assert isinstance(total, torch.Tensor)
    assert isinstance(slowest, torch.Tensor)
    result = total.tolist(), slowest.item()
    # Without this, a process that ends while its gloo threads run is aborted.
    fabric.barrier()
    torch.distributed.destroy_process_group()
    return result


def _share(
    config: dict[str, Any],
    loaded: LoadedModel,
    text: Text,
    device: torch.device,
    *,
    rank: int,
    world_size: int,
) -> tuple[list[float], float]:
    settings = config["eval"]
    precision = _given(settings["precision"], loaded.precision)
    scorer = Scorer.of(loaded.model, text.val.byte_counter(), device, precision)._replace(
        temperature=_temperature(settings, loaded),
        rank=rank,
        world_size=world_size,
        compile=settings["compile"],
    )
    began = time.perf_counter()
    sums = score_split(scorer, text.val, settings, loaded.stride)
    seconds = time.perf_counter() - began
    with scorer.autocast():
        counts = Tasks(text.val, text.train).counts(
            scorer.model, rank, world_size, temperature=scorer.temperature
        )
    return [*sums.tolist(), *counts.tolist()], seconds


def _temperature(settings: dict[str, Any], loaded: LoadedModel) -> float:
    return float(_given(settings["temperature"], loaded.temperature))
