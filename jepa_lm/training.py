"""train(cfg): from a composed config to a trained model, its records and a few words of text."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from jepa_lm.checkpoint import find_checkpoint
from jepa_lm.config import check, resolve
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.describe import describe, sizes
from jepa_lm.errors import UserError, warn
from jepa_lm.evaluation.bpb import Score
from jepa_lm.evaluation.probe import TOP, probe
from jepa_lm.evaluation.temperature import check_temperature
from jepa_lm.lit import LanguageModelTask
from jepa_lm.objective import Moment
from jepa_lm.optim.clock import ProgressClock
from jepa_lm.precision import resolve_precision
from jepa_lm.records import config_hash, git_state, versions, write_json
from jepa_lm.resume import check_resumable
from jepa_lm.sampling import check_sampling, sample_text

ERR = Console(stderr=True, highlight=False)
OUT = Console(highlight=False)


def train(cfg: DictConfig) -> float | None:
    """Train, validate, checkpoint and write summary.json.

    Returns:
        The validation's bits per byte, which a sweep can optimize; None for `describe=true`.

    Raises:
        UserError: anything in the config or the data that a user can mend.
    """
    config = resolve(cfg)
    check(config)
    check_sampling(config["sampling"])
    check_temperature("temperature", config["temperature"])
    _quiet_lightning()
    budget = config["trainer"]
    budget["precision"] = resolve_precision(budget["precision"], budget["accelerator"])
    if config["model"].get("kernel") == "triton" and budget["accelerator"] == "cpu":
        raise UserError(
            "model.kernel=triton: needs trainer=gpu or trainer=ddp; this run is on the CPU"
        )
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    resume = find_checkpoint(config["ckpt_path"]) if config["ckpt_path"] else None
    clock = ProgressClock(max_steps=budget["max_steps"], max_time=budget["max_time"])
    task = LanguageModelTask(config, clock)
    if config["describe"]:
        print(json.dumps(describe(task), indent=2))
        return None
    task.recipe.configure(task, clock)  # a parameter without a group is refused before data is read
    about = sizes(task)
    if resume is not None:
        check_resumable(resume, task)
    run_dir = Path(config["paths"]["run_dir"])
    run_dir.mkdir(parents=True, exist_ok=True)
    data: TokenDataModule = instantiate(config["data"], _convert_="all")
    data.prepare_data()  # before the trainer: an error in the data comes before anything is started
    data.setup()
    trainer = _trainer(config)
    data.micro_batch_tokens(trainer.world_size, trainer.accumulate_grad_batches)
    if trainer.is_global_zero:
        _announce(task, about, resume)
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
    status = _fit(trainer, task, data, resume, run_dir)
    score = task.scores.get("shipped")
    if trainer.is_global_zero:
        summary = _summary(trainer, task, config, status, about)
        if config["probe"] and status == "finished":
            summary["probe"] = probe(task.shipped, task.objective, data, Moment(clock))
        write_json(run_dir / "summary.json", summary)
        _report(summary, run_dir)
        if task.watch is not None and task.watch.figures:
            OUT.print(Panel("\n".join(task.watch.in_words()), title="predicted latents", width=100))
        if config["sample"] and status == "finished":
            _show_sample(task, data, config)
    if status == "interrupted":
        raise KeyboardInterrupt
    return None if score is None else score.bpb


def _fit(
    trainer: pl.Trainer,
    task: LanguageModelTask,
    data: TokenDataModule,
    resume: Path | None,
    run_dir: Path,
) -> str:
    """Run the trainer; returns `finished` or `interrupted`. A failure is recorded and raised."""
    interrupts: list[int] = []
    try:
        with _gentle_interrupt(trainer, interrupts):
            trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # Lightning's way to end after a second Ctrl-C
        return "interrupted"
    except Exception as error:
        if trainer.is_global_zero:
            write_json(run_dir / "summary.json", {"status": "failed", "error": str(error)})
        raise
    if not task.scores:  # the restored run had used up its budget
        trainer.validate(task, datamodule=data, verbose=False)
    trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    return "interrupted" if interrupts else "finished"


@contextmanager
def _gentle_interrupt(trainer: pl.Trainer, interrupts: list[int]) -> Iterator[None]:
    """The first Ctrl-C ends training after the step it is in, so that nothing is lost.

    With several ranks each process would stop at a step of its own, so there Ctrl-C stays hard.
    """
    alone = trainer.world_size == 1 and threading.current_thread() is threading.main_thread()

    def stop(signum: int, frame: Any) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(signum)
        trainer.should_stop = True
        ERR.print("stopping after this step and a validation; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, stop) if alone else None
    try:
        yield
    finally:
        if alone:
            signal.signal(signal.SIGINT, before)


def _trainer(config: dict[str, Any]) -> pl.Trainer:
    """Lightning's Trainer; our own settings are taken out or translated."""
    settings = dict(config["trainer"])
    settings.pop("max_time")
    settings["max_steps"] = settings["max_steps"] or -1
    every = settings.pop("val_check_interval")
    if every is not None:
        # Lightning counts micro-batches; a user means optimizer steps.
        settings["val_check_interval"] = every * settings["accumulate_grad_batches"]
        settings["check_val_every_n_epoch"] = None
    try:
        return instantiate(
            settings,
            max_epochs=-1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
            profiler=_profiler(settings.pop("profiler", None)),
            callbacks=[instantiate(c) for c in config["callbacks"].values()],
            logger=[instantiate(x) for x in config["logger"].values()],
        )
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, pl.utilities.exceptions.MisconfigurationException):
            raise UserError(f"trainer: {' '.join(str(cause).split())}") from error
        raise


class _NoProfiler(PassThroughProfiler):
    """Lightning enters a generator for each of some 40 profiled spans a step; this costs 1 us less each."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Measure nothing."""
        return self._nothing


def _profiler(name: str | None) -> Any:
    """Lightning's profiler of that name, or one that costs nothing."""
    return _NoProfiler() if name is None else name


def _quiet_lightning() -> None:
    """What Lightning says at a start is not about the user's run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for about in (".*does not have many workers.*", ".*LeafSpec.*", ".*checkpoint directory.*"):
        warnings.filterwarnings("ignore", about)


def _announce(task: LanguageModelTask, about: dict[str, Any], resume: Path | None) -> None:
    config = task.config
    budget = {k: v for k, v in about["budget"].items() if v is not None}
    limit = " or ".join(
        f"{v} {'seconds' if k == 'max_time' else 'steps'}" for k, v in budget.items()
    )
    lines = [
        f"{about['parameters']['shipped']:,} parameters that ship, "
        f"{about['parameters']['training_only']:,} for training only",
        f"{about['tokens_per_step']:,} tokens a step in sequences of {config['data']['seq_len']}, "
        f"{config['trainer']['precision']}, for {limit}",
    ]
    if task.frozen:
        lines.append(f"frozen on purpose: {', '.join(task.frozen)}")
    if config["jepa"]["weight"] and "_target_" not in config["jepa"]:
        warn(f"jepa.weight={config['jepa']['weight']} does nothing with objective=none")
    if resume is not None:
        lines.append(f"continues {resume}")
    ERR.print(Panel("\n".join(lines), title=config["task_name"], expand=False))


def _summary(
    trainer: pl.Trainer,
    task: LanguageModelTask,
    config: dict[str, Any],
    status: str,
    about: dict[str, Any],
) -> dict[str, Any]:
    """The contents of summary.json."""
    assert task.clock is not None
    seconds = task.clock.elapsed
    tokens = trainer.global_step * config["data"]["batch_tokens"]
    score = task.scores.get("shipped")
    return {
        "status": status,
        "seed": config["seed"],
        "steps": trainer.global_step,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "parameters": about["parameters"],
        "val": None if score is None else _validation(task, score),
        "jepa": {} if task.watch is None else task.watch.summary(),
        "frozen": task.frozen,
        "trained_stored": _trained_stored(task),
        "precision": config["trainer"]["precision"],
        "config_hash": config_hash(config),
        "git": git_state(),
        "versions": versions(),
        "compiled": config["compile"],
        "compiled_parts": ["main pass", "cross entropy"] if config["compile"] else [],
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _trained_stored(task: LanguageModelTask) -> dict[str, Any] | None:
    """What quantization-aware training reached, and since which step; None without it."""
    if task.stored is None:
        return None
    return {
        "tensors": len(task.stored.names),
        "values": task.stored.values,
        "first_step": task.stored.first_step,
    }


def _validation(task: LanguageModelTask, score: Score) -> dict[str, Any]:
    """The final scores, and which weights they belong to."""
    weights = "raw" if task.average is None else "ema"
    others = {name: other.as_dict() for name, other in task.scores.items() if name != "shipped"}
    return {**score.as_dict(), "weights": weights, **others}


def _report(summary: dict[str, Any], run_dir: Path) -> None:
    table = Table(title=f"training {summary['status']}", show_header=False)
    table.add_row("steps", f"{summary['steps']:,}")
    table.add_row("tokens", f"{summary['tokens']:,}")
    table.add_row("seconds of training", f"{summary['seconds']:.1f}")
    if summary["val"] is not None:
        table.add_row("validation, nats per token", f"{summary['val']['nll']:.4f}")
        table.add_row("validation, bits per byte", f"{summary['val']['bpb']:.4f}")
        if "raw" in summary["val"]:
            table.add_row("the same without averaging", f"{summary['val']['raw']['bpb']:.4f}")
        if "quantized" in summary["val"]:
            table.add_row("the same as stored", f"{summary['val']['quantized']['bpb']:.4f}")
    for name, accuracy in summary.get("probe", {}).items():
        shown = ", ".join(f"{accuracy[f'top{k}']:.1%}" for k in TOP)
        table.add_row(f"{name}: among the best 1, 5, 10", shown)
    OUT.print(table)
    OUT.print(f"written to {run_dir}", soft_wrap=True)


def _show_sample(task: LanguageModelTask, data: TokenDataModule, config: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        text = sample_text(
            task.shipped, data.tokenizer, context=config["data"]["seq_len"], **config["sampling"]
        )
    OUT.print(Panel(text.strip(), title="what the model writes", width=100))
