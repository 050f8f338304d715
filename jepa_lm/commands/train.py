"""train(cfg): train a model from a composed config, write its records and print a sample."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig
from torch._dynamo.exc import TorchDynamoException

from jepa_lm.artifact.teacher import opener
from jepa_lm.commands.describe import describe
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.data.token_data import TokenData
from jepa_lm.live.run_page import keep_page
from jepa_lm.loggers.recording import RunLoggers, recording
from jepa_lm.loggers.settings import fill_in
from jepa_lm.objective import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.callbacks.checkpoints import SaveCheckpoints
from jepa_lm.training.distributed import ranks_of
from jepa_lm.training.flops import sizes
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.training.probe import probe
from jepa_lm.training.resume import go_on
from jepa_lm.training.run_folder import Record, claimed, keep_overrides
from jepa_lm.training.startup import (
    check_devices,
    check_start,
    tell_limits,
)
from jepa_lm.training.summary import about_latents, announce, show, summarize
from jepa_lm.training.trainer import make_trainer, quiet_lightning
from jepa_lm.utils.collectives import maximum
from jepa_lm.utils.compiling import compiles
from jepa_lm.utils.config import build, check, resolve
from jepa_lm.utils.errors import cause_of, in_words, warn
from jepa_lm.utils.files import write_json
from jepa_lm.utils.going_on import OVERRIDES
from jepa_lm.utils.memory import PeakMemory
from jepa_lm.utils.output import tell
from jepa_lm.utils.paths import CONFIG_FILE, SUMMARY_FILE, TOKENIZER_FILE
from jepa_lm.utils.precision import resolve_precision
from jepa_lm.utils.provenance import config_hash, git_state, source_hash
from jepa_lm.utils.signals import Stopped
from jepa_lm.utils.trusted import Trust

RECORDS = (SUMMARY_FILE, CONFIG_FILE, OVERRIDES)
"""Small files of a run folder that loggers also keep, if they exist."""


def train(cfg: DictConfig) -> float | None:
    """Train, validate, checkpoint and write summary.json.

    Returns:
        The validation's bits per byte (nats per token for what has no bytes), or what `metric` names, which
        a sweep can optimize; None for `describe=true`.

    Raises:
        UserError: an error in the config or the data that a user can fix.
    """
    return train_resolved(resolve(cfg), cfg)


def train_resolved(config: dict[str, Any], cfg: DictConfig | None = None) -> float | None:
    """Train as `train` does, from a resolved config, which is modified in place.

    Args:
        cfg: the config before it was resolved, if this process composed it; for the folder's `.hydra/`.
    """
    given, git = copy.deepcopy(config), git_state()
    source_hash()  # now: the files may change during a long run
    _settle(config)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    fill_in(config, "train", resume=config["ckpt_path"] is not None)
    memory = PeakMemory()
    budget, run_dir = config["trainer"], Path(config["paths"]["run_dir"])
    clock = ProgressClock(max_steps=budget["max_steps"], max_time=budget["max_time"])
    task = LanguageModelTask(config, clock, opener(Trust.of(config)))
    if config["describe"]:
        print(json.dumps(describe(task), indent=2))
        return None
    task.recipe.configure(task, clock)  # refuses a parameter without a group before data is read
    about = sizes(task) | {"config_hash": config_hash(given), "memory": memory, "git": git}
    with claimed(run_dir, config["ckpt_path"], Trust.of(config)) as resume:
        # The ranks started from here resume from the same checkpoint.
        config["ckpt_path"] = None if resume is None else str(resume)
        data: TokenData = build("data", config["data"])
        data.prepare_data()  # before the trainer, so that a data error comes before anything is started
        data.setup()
        task.check_data(data)
        trainer = make_trainer(config, task)
        about["passes"] = data.passes(trainer.world_size, trainer.accumulate_grad_batches)
        about["passes"].check_epochs(budget.get("max_epochs"), budget["max_steps"])
        if resume is not None:
            task.resumed = go_on(resume, task, data, trainer)
        config["compile"] = compiles(
            config, None if task.resumed is None else task.resumed.compiled
        )
        if trainer.is_global_zero:
            if cfg is not None:
                keep_overrides(cfg, run_dir)
            write_json(run_dir / CONFIG_FILE, given)
            data.tokenizer.save(run_dir / TOKENIZER_FILE)
            tell_limits(config)
            announce(task, data, about, resume)
        _run(trainer, task, data, about)
    if task.stop.signum is not None:
        raise Stopped(task.stop.signum)
    score = task.scores.get("shipped")
    return None if score is None else score.of(task.metric)


def _settle(config: dict[str, Any]) -> None:
    """Check the config, and settle the precision for this machine."""
    check(config)
    check_start(config)
    quiet_lightning()
    budget = config["trainer"]
    budget["precision"] = resolve_precision(budget["precision"], budget["accelerator"])
    check_devices(budget)


def _run(
    trainer: pl.Trainer, task: LanguageModelTask, data: TokenData, about: dict[str, Any]
) -> None:
    """Train, and record how the run ends."""
    record = Record(
        Path(task.config["paths"]["run_dir"]), 0 if task.resumed is None else task.resumed.step
    )
    with (
        # Closed last, so that a job is requeued before W&B has uploaded everything.
        recording(trainer.loggers, task.config, task.stop, task.resumed) as records,
        task.stop.listening(speak=trainer.is_global_zero),
        _recorded(trainer, record),
        ranks_of(trainer, task.config, record),
    ):
        _fit(trainer, task, TokenDataModule(data))
        task.stop.over = True
        if trainer.is_global_zero:
            _conclude(trainer, task, data, about, record, records)
        if trainer.world_size > 1 and task.stop.signum is not None:
            # Leave together: a launcher treats the first rank with a nonzero exit code as a failure.
            maximum(0.0, device=trainer.strategy.root_device)


def _fit(trainer: pl.Trainer, task: LanguageModelTask, data: TokenDataModule) -> None:
    """Train, and save the final state."""
    resume = None if task.resumed is None else task.resumed.path
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        if not task.scores and not task.stop.hurried:  # the restored run had used up its budget
            trainer.validate(task, datamodule=data, verbose=False)
    except SystemExit as exit:  # Lightning raises it after a second Ctrl-C
        raise KeyboardInterrupt from exit
    except TorchDynamoException as error:
        # A signal to the whole process group ends the compiler's own processes, too.
        if (signum := task.stop.asked_signum) is None:
            raise
        tell(
            "the compiler was stopped as well, so the step is lost; ckpt_path=auto resumes the run"
        )
        raise Stopped(signum) from error
    saver = next(c for c in trainer.checkpoint_callbacks if isinstance(c, SaveCheckpoints))
    saver.save(trainer, task)  # again: the validation may have chosen what ships


@contextmanager
def _recorded(trainer: pl.Trainer, record: Record) -> Iterator[None]:
    """Record a failure in summary.json, and turn system errors about files into one-line errors."""
    try:
        yield
    except Exception as error:
        if trainer.is_global_zero:
            record.fail(in_words(error), cause_of(error), trainer.global_step)
        if isinstance(error, OSError):
            raise record.explain(error) from error
        raise


def _conclude(
    trainer: pl.Trainer,
    task: LanguageModelTask,
    data: TokenData,
    about: dict[str, Any],
    record: Record,
    records: RunLoggers,
) -> None:
    """Write the first rank's records, then print them; a failure while printing changes no record."""
    finished = task.stop.signum is None
    summary = summarize(trainer, task, "finished" if finished else "interrupted", about)
    record.write(summary)
    if task.config["probe"] and finished:
        try:
            found = probe(task.shipped, task.objective, data, StepContext(task.clock))
            record.write(summary := {**summary, "probe": found})
        except Exception as error:
            warn(
                f"probe=true: the probe failed ({type(error).__name__}: {error}); the score is kept"
            )
    records.summary(summary, [record.folder / name for name in RECORDS])
    sample = show(summary, record.folder, trainer, task, data)
    try:
        keep_page(record.folder, sample, about_latents(trainer), finished=finished)
    except Exception as error:  # any error: the run is over, and its records are complete
        warn(f"run.html cannot be written ({type(error).__name__}: {error})")
