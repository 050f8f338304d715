"""train(cfg): from a composed config to a trained model, its records and a few words of text."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.panel import Panel

from jepa_lm.checkpoint import find_checkpoint
from jepa_lm.config import check, resolve
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.describe import describe, sizes
from jepa_lm.errors import UserError
from jepa_lm.evaluation.probe import probe
from jepa_lm.evaluation.temperature import check_temperature
from jepa_lm.lit import LanguageModelTask
from jepa_lm.objective import Moment
from jepa_lm.optim.clock import ProgressClock
from jepa_lm.precision import resolve_precision
from jepa_lm.records import write_json
from jepa_lm.resume import check_resumable
from jepa_lm.sampling import check_sampling
from jepa_lm.summary import ERR, OUT, announce, report, show_sample, summarize
from jepa_lm.trainer import make_trainer, quiet_lightning


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
    quiet_lightning()
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
    trainer = make_trainer(config)
    data.micro_batch_tokens(trainer.world_size, trainer.accumulate_grad_batches)
    if trainer.is_global_zero:
        announce(task, about, resume)
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
    status = _fit(trainer, task, data, resume, run_dir)
    score = task.scores.get("shipped")
    if trainer.is_global_zero:
        summary = summarize(trainer, task, config, status, about)
        if config["probe"] and status == "finished":
            summary["probe"] = probe(task.shipped, task.objective, data, Moment(clock))
        write_json(run_dir / "summary.json", summary)
        report(summary, run_dir)
        if task.watch is not None and task.watch.figures:
            OUT.print(Panel("\n".join(task.watch.in_words()), title="predicted latents", width=100))
        if config["sample"] and status == "finished":
            show_sample(task, data, config)
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
