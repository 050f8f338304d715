"""Reports of a run: an announcement at its start, summary.json and a table at its end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.table import Table

from jepa_lm.data.passes import figure
from jepa_lm.data.related import WithRelated
from jepa_lm.data.token_data import TokenData
from jepa_lm.evaluation.bpb import Score
from jepa_lm.evaluation.sampling import continued
from jepa_lm.training.callbacks import callback_of
from jepa_lm.training.callbacks.monitor import MeasureObjective, MeasureTokens
from jepa_lm.training.callbacks.qat import QuantizationAwareTraining
from jepa_lm.training.flops import flops_of_run
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.training.probe import TOP
from jepa_lm.utils import gpus
from jepa_lm.utils.compiling import devices_here
from jepa_lm.utils.console import Screen, as_written, panel, showing
from jepa_lm.utils.errors import warn
from jepa_lm.utils.metrics import METRICS, key_of, loss_of, measured
from jepa_lm.utils.output import suppressed
from jepa_lm.utils.provenance import source_hash, versions

ERR = Screen(stderr=True)
OUT = Screen()
SCORED = {
    "raw": "the raw weights",
    "ema": "their exponential moving average",
    "swa": "their mean over the warmdown",
    "quantized": "the shipped weights, quantized",
}
"""Labels of the table for other weights that a validation scores."""


def announce(
    task: LanguageModelTask, data: TokenData, about: dict[str, Any], resume: Path | None
) -> None:
    """Print size, data and budget of a run before it starts, and warn about its data."""
    config, passes = task.config, about["passes"]
    budget = {k: v for k, v in about["budget"].items() if v is not None}
    limit = " or ".join(
        f"{v} {'seconds' if k == 'max_time' else 'steps'}" for k, v in budget.items()
    )
    lines = [
        _place(config["trainer"]),
        f"{about['parameters']['shipped']:,} shipped parameters, "
        f"{about['parameters']['training_only']:,} for training only",
        f"{about['tokens_per_step']:,} tokens per step in sequences of {config['data']['seq_len']}, "
        f"{config['trainer']['precision']}, for {limit}",
        data.in_words(),
        passes.announced(**about["budget"], done=0 if task.resumed is None else task.resumed.step),
    ]
    for caution in data.cautions():
        warn(caution)
    if passes.will_repeat(**about["budget"]):
        warn(passes.warning(about["budget"]["max_steps"]))
    if task.frozen:
        lines.append(f"frozen on purpose: {', '.join(task.frozen)}")
    if resume is not None:
        lines.append(f"continues {resume}")
    if config["compile"]:
        lines.append(
            "compiled: the first step takes a minute or more; compile=false starts at once"
        )
    with suppressed(sys.stderr):
        ERR.print(panel(lines, config["task_name"], expand=False))


def _place(trainer: Mapping[str, Any]) -> str:
    """Say where a run trains, and that GPUs stay unused."""
    if trainer["accelerator"] == "cpu":
        return "on the CPU"
    found, used = torch.cuda.device_count(), devices_here(trainer)
    name, unused = torch.cuda.get_device_name(), max(0, found - used)
    hint = f"; {unused} more unused: trainer=ddp trains on all" if unused else ""
    return f"on {used} x {name}{hint}"


def summarize(
    trainer: pl.Trainer,
    task: LanguageModelTask,
    status: str,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Return the contents of summary.json."""
    config, seconds = task.config, task.clock.elapsed
    tokens = trainer.global_step * config["data"]["batch_tokens"]
    score = task.scores.get("shipped")
    measured, of_tokens = (callback_of(trainer, c) for c in (MeasureObjective, MeasureTokens))
    return {
        "status": status,
        "seed": config["seed"],
        "steps": trainer.global_step,
        "tokens": tokens,
        "passes": about["passes"].after(trainer.global_step),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "parameters": about["parameters"],
        "val": None if score is None else _validation(task, score),
        "jepa": {} if measured is None else measured.monitor.summary(),
        "token_loss": {} if of_tokens is None else of_tokens.monitor.summary(),
        "placebo": _placebo(trainer),
        "frozen": task.frozen,
        "teacher": None if task.objective is None else task.objective.target.record,
        "trained_stored": _trained_stored(trainer),
        "skipped_steps": task.guard.skipped,
        "compile_seconds": task.compiler.seconds,
        "memory_bytes": about["memory"].peak(trainer.strategy.root_device),
        "flops_per_token": flops_of_run(task, trainer.global_step),
        "unfinished": unfinished(task),
        "ranks": trainer.world_size,
        "visible_gpus": os.environ.get(gpus.VISIBLE),
        "precision": config["trainer"]["precision"],
        "config_hash": about["config_hash"],
        "source": source_hash(),
        "git": about["git"],
        "versions": versions(),
        "compiled": config["compile"],
        "compiled_parts": _compiled_parts(task),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _placebo(trainer: pl.Trainer) -> dict[str, float]:
    """Return how far the placebo of a run was one; empty without a placebo."""
    order = getattr(trainer.train_dataloader, "order", None)
    return {"own_document": order.own_document} if isinstance(order, WithRelated) else {}


MOSTLY_START = 0.1
"""Share of the initial weights in a shipped average above which a run warns."""


def unfinished(task: LanguageModelTask) -> list[str]:
    """List what the budget cut short: phases counted in steps, an average close to the initial weights."""
    steps = task.clock.step
    phases = task.phases()
    found = [
        f"schedule {name}: a phase of {phase['steps']} steps had not ended after {steps}"
        for name, listed in phases.items()
        for phase in listed
        if phase.get("steps", 0) > steps
    ]
    decay = task.averages.decay
    if decay is not None and task.averages.shipped() == "ema" and decay**steps > MOSTLY_START:
        found.append(
            f"average.decay={decay}: after {steps} steps {decay**steps:.0%} of the shipped average is "
            "still the initial weights; lower it, or set average.ship=best"
        )
    return found


def _compiled_parts(task: LanguageModelTask) -> list[str]:
    """List the compiled parts, so that a study can refuse arms that differ in them."""
    if not task.config["compile"]:
        return []
    objective = ["objective"] if any(o.weight for o in task.auxiliaries.values()) else []
    return ["main pass", "cross entropy", *objective]


def _trained_stored(trainer: pl.Trainer) -> dict[str, Any] | None:
    """Return the extent and first step of quantization-aware training; None without it."""
    qat = callback_of(trainer, QuantizationAwareTraining)
    if qat is None:
        return None
    return {
        "tensors": len(qat.weights.names),
        "values": qat.weights.values,
        "first_step": qat.first_step,
    }


def _validation(task: LanguageModelTask, score: Score) -> dict[str, Any]:
    """Return the final scores and the name of the weights that ship."""
    others = {name: other.as_dict() for name, other in task.scores.items() if name != "shipped"}
    about = {"floor": task.floor, "weights": task.averages.shipped()}
    return {**score.as_dict(), **about, **others}


def show(
    summary: dict[str, Any],
    run_dir: Path,
    trainer: pl.Trainer,
    task: LanguageModelTask,
    data: TokenData,
) -> str:
    """Print tables, warnings and a sample; everything shown except the sample is already recorded.

    Returns:
        The sample; empty if there is none.
    """
    with showing("the scores"):
        OUT.print(_scores(summary))
        for text in summary["unfinished"]:
            warn(text)
        OUT.print(f"written to {run_dir}", soft_wrap=True)
    if latents := about_latents(trainer):
        with showing("the predicted latents"):
            OUT.print(panel(latents, "predicted latents", width=100))
    if profile := trainer.profiler.summary():  # type: ignore[attr-defined]
        with showing("the profile"):
            OUT.print(as_written(profile), soft_wrap=True)
    text = ""
    if task.config["sample"] and summary["status"] == "finished":
        with showing("a sample"):
            text = _sample(task, data).strip()
            OUT.print(panel(text.split("\n"), "what the model writes", width=100))
    return text


def about_latents(trainer: pl.Trainer) -> list[str]:
    """Return sentences about the predicted latents; none if they were not measured."""
    found = (callback_of(trainer, kind) for kind in (MeasureObjective, MeasureTokens))
    return [line for measured in found if measured for line in measured.monitor.in_words()]


def _scores(summary: dict[str, Any]) -> Table:
    table = Table(title=f"training {summary['status']}", show_header=False)
    table.add_row("steps", f"{summary['steps']:,}")
    table.add_row("tokens", f"{summary['tokens']:,}")
    table.add_row("passes over the training split", figure(summary["passes"]))
    table.add_row("seconds of training", f"{summary['seconds']:.1f}")
    if summary["val"] is not None:
        for metric in measured(summary["val"]):
            value = summary["val"][key_of(metric)]
            table.add_row(f"validation, {METRICS[metric].says}", f"{value:.4f}")
        if (floor := summary["val"]["floor"]) is not None:
            table.add_row("the law's own score, nats per token", f"{floor:.4f}")
            table.add_row("nats above it", f"{summary['val']['nll'] - floor:.4f}")
        loss = loss_of(summary["val"])
        for name, words in SCORED.items():
            if name in summary["val"]:
                ships = " (ships)" if name == summary["val"]["weights"] else ""
                value = summary["val"][name][key_of(loss)]
                table.add_row(f"{METRICS[loss].says} of {words}{ships}", f"{value:.4f}")
    for name, accuracy in summary.get("probe", {}).items():
        shown = ", ".join(f"{accuracy[f'top{k}']:.1%}" for k in TOP)
        table.add_row(f"{name}: top-1, top-5, top-10 accuracy", shown)
    return table


def _sample(task: LanguageModelTask, data: TokenData) -> str:
    config = task.config
    with torch.random.fork_rng():
        text = continued(
            task.shipped, data.tokenizer, context=config["data"]["seq_len"], **config["sampling"]
        )
    return "".join(text)
