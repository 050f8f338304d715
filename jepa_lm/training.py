"""train(cfg): from a composed config to a trained model, its records and a few words of text."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig
from rich.panel import Panel

from jepa_lm.callbacks.checkpoints import SaveCheckpoints
from jepa_lm.checkpoint import find_resume
from jepa_lm.collectives import maximum
from jepa_lm.config import build, check, resolve
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.data.token_data import TokenData
from jepa_lm.describe import describe, sizes
from jepa_lm.distributed import ranks_of
from jepa_lm.errors import UserError, disk_error
from jepa_lm.evaluation.probe import probe
from jepa_lm.evaluation.temperature import check_temperature
from jepa_lm.files import write_json
from jepa_lm.lit import LanguageModelTask
from jepa_lm.loggers.recording import Records, recording
from jepa_lm.loggers.settings import fill_in
from jepa_lm.memory import PeakMemory
from jepa_lm.objective import Moment
from jepa_lm.optim.clock import ProgressClock
from jepa_lm.precision import resolve_precision
from jepa_lm.records import CONFIG_FILE, config_hash, git_state, source_hash
from jepa_lm.resume import check_resumable
from jepa_lm.sampling import check_sampling
from jepa_lm.stopping import Stopped
from jepa_lm.summary import OUT, announce, report, show_sample, summarize
from jepa_lm.trainer import check_devices, make_trainer, quiet_lightning
from jepa_lm.trusted import Trust

RECORDS = ("summary.json", CONFIG_FILE, ".hydra/overrides.yaml")
"""Small files of a run folder that loggers keep, where they exist."""


def train(cfg: DictConfig) -> float | None:
    """Train, validate, checkpoint and write summary.json.

    Returns:
        The validation's bits per byte, which a sweep can optimize; None for `describe=true`.

    Raises:
        UserError: anything in the config or the data that a user can mend.
    """
    config = resolve(cfg)
    given, git = copy.deepcopy(config), git_state()
    source_hash()  # now: the files may change during a long run
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
    check_devices(budget)
    if config["compile"] is None:
        config["compile"] = budget["accelerator"] != "cpu"
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    run_dir = Path(config["paths"]["run_dir"])
    fill_in(config, "train", resume=config["ckpt_path"] is not None)
    trust = Trust.of(config)
    resume = find_resume(config["ckpt_path"], run_dir, trust) if config["ckpt_path"] else None
    # The ranks that are started from here take the same one.
    config["ckpt_path"] = None if resume is None else str(resume)
    memory = PeakMemory()
    clock = ProgressClock(max_steps=budget["max_steps"], max_time=budget["max_time"])
    task = LanguageModelTask(config, clock)
    if config["describe"]:
        print(json.dumps(describe(task), indent=2))
        return None
    task.recipe.configure(task, clock)  # a parameter without a group is refused before data is read
    about = sizes(task) | {"config_hash": config_hash(given), "memory": memory, "git": git}
    if resume is not None:
        check_resumable(resume, task, trust)
    run_dir.mkdir(parents=True, exist_ok=True)
    data: TokenData = build("data", config["data"])
    data.prepare_data()  # before the trainer: an error in the data comes before anything is started
    data.setup()
    trainer = make_trainer(config)
    data.micro_batch_tokens(trainer.world_size, trainer.accumulate_grad_batches)
    if trainer.is_global_zero:
        write_json(run_dir / CONFIG_FILE, given)
        announce(task, about, resume)
    with (
        # Closed last: a job is requeued before W&B has uploaded everything.
        recording(trainer.loggers, config, task.stop) as records,
        task.stop.listening(speak=trainer.is_global_zero),
        _recorded(trainer, run_dir),
        ranks_of(trainer, config, run_dir),
    ):
        _fit(trainer, task, TokenDataModule(data), resume)
        task.stop.over = True
        _conclude(trainer, task, data, about, records)
        if trainer.world_size > 1 and task.stop.signum is not None:
            # Leave together: a launcher takes the first one that ends with a code for a failure.
            maximum(0.0, device=trainer.strategy.root_device)
    if task.stop.signum is not None:
        raise Stopped(task.stop.signum)
    score = task.scores.get("shipped")
    return None if score is None else score.bpb


def _fit(
    trainer: pl.Trainer, task: LanguageModelTask, data: TokenDataModule, resume: Path | None
) -> None:
    """Train, and save what the run ends with."""
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        if not task.scores and not task.stop.hurried:  # the restored run had used up its budget
            trainer.validate(task, datamodule=data, verbose=False)
    except SystemExit as exit:  # Lightning's way to end after a second Ctrl-C
        raise KeyboardInterrupt from exit
    saver = next(c for c in trainer.checkpoint_callbacks if isinstance(c, SaveCheckpoints))
    saver.save(trainer, task)  # again: the validation may have chosen what ships


@contextmanager
def _recorded(trainer: pl.Trainer, run_dir: Path) -> Iterator[None]:
    """A failure is written into summary.json, and one of the disk is told in one line."""
    try:
        yield
    except Exception as error:
        if trainer.is_global_zero:
            with suppress(OSError):
                write_json(run_dir / "summary.json", {"status": "failed", "error": str(error)})
        about_the_disk = disk_error(error) if isinstance(error, OSError) else None
        if about_the_disk is not None:
            raise about_the_disk from error
        raise


def _conclude(
    trainer: pl.Trainer,
    task: LanguageModelTask,
    data: TokenData,
    about: dict[str, Any],
    records: Records,
) -> None:
    """What the first rank writes and shows at the end of a run."""
    if not trainer.is_global_zero:
        return
    assert task.clock is not None
    config, run_dir = task.config, Path(task.config["paths"]["run_dir"])
    finished = task.stop.signum is None
    summary = summarize(trainer, task, "finished" if finished else "interrupted", about)
    if config["probe"] and finished:
        summary["probe"] = probe(task.shipped, task.objective, data, Moment(task.clock))
    write_json(run_dir / "summary.json", summary)
    records.summary(summary, [run_dir / name for name in RECORDS])
    report(summary, run_dir)
    if task.watch is not None and task.watch.figures:
        OUT.print(Panel("\n".join(task.watch.in_words()), title="predicted latents", width=100))
    if config["sample"] and finished:
        show_sample(task, data, config)
