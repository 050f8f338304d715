"""Lightning's Trainer, built from the project's settings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

from jepa_lm.objective.latent_monitor import LatentMonitor
from jepa_lm.objective.token_monitor import TokenMonitor
from jepa_lm.training.callbacks.checkpoints import AtomicCheckpointIO, SaveCheckpoints
from jepa_lm.training.callbacks.monitor import MeasureObjective, MeasureTokens
from jepa_lm.training.callbacks.passes import WarnOfSecondPass
from jepa_lm.training.callbacks.qat import QuantizationAwareTraining
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.trusted import Trust


def make_trainer(config: dict[str, Any], task: LanguageModelTask) -> pl.Trainer:
    """Build Lightning's Trainer; settings that Lightning does not have are removed or translated."""
    settings = dict(config["trainer"])
    saver = SaveCheckpoints(
        folder=f"{config['paths']['run_dir']}/checkpoints", **config["checkpoint"]
    )
    for ours_alone in ("max_time", "max_epochs"):
        settings.pop(ours_alone, None)
    settings["max_steps"] = -1 if settings["max_steps"] is None else settings["max_steps"]
    every = settings.pop("val_check_interval")
    if every is not None:
        # Lightning counts micro-batches; a user means optimizer steps.
        settings["val_check_interval"] = every * settings["accumulate_grad_batches"]
        settings["check_val_every_n_epoch"] = None
    try:
        loggers = [*build("logger", config["logger"]).values()]
        configured = build("callbacks", config["callbacks"]).values()
        ours = {
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "callbacks": [
                # LearningRateMonitor raises an error if there is no logger.
                *(c for c in configured if loggers or not isinstance(c, LearningRateMonitor)),
                *_callbacks_of(task),
                saver,  # last: a checkpoint includes what the others did after its step
            ],
            "plugins": [AtomicCheckpointIO(Trust.of(config))],
            "logger": loggers,
        }
        trainer: pl.Trainer = build("trainer", settings | ours)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, pl.utilities.exceptions.MisconfigurationException):
            raise UserError(f"trainer: {' '.join(str(cause).split())}") from error
        raise
    _trim(trainer)
    return trainer


def _callbacks_of(task: LanguageModelTask) -> list[Callback]:
    """Return the callbacks that data, compiler, quantization and objective of a run need, in their order."""
    found: list[Callback] = [WarnOfSecondPass(), task.guard, task.compiler]
    qat = None
    if task.policy.training.ever:
        qat = QuantizationAwareTraining(task.model, task.policy.training, task.formats)
        found.append(qat)
    if task.objective is not None:
        found.append(MeasureObjective(LatentMonitor(task.objective), qat))
    if task.tokens is not None:
        found.append(MeasureTokens(TokenMonitor(task.tokens), qat))
    return found


def _trim(trainer: pl.Trainer) -> None:
    """Disable the parts of Lightning's loop that this project replaces."""
    # utils/signals.py handles signals. Lightning's handler would start a collective inside a signal handler,
    # and with several ranks Lightning checks for SIGTERM by a broadcast and a host read before every batch.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    for logger in trainer.loggers:
        logger.finalize = _tried(logger.finalize)  # type: ignore[assignment, method-assign]


def _tried(finalize: Callable[[str], None]) -> Callable[[str], None]:
    """Wrap a logger's `finalize`, so that an error after training does not cost the run its score."""

    @wraps(finalize)
    def tried(status: str) -> None:
        try:
            finalize(status)
        except Exception as error:
            warn(f"a logger could not write everything out ({type(error).__name__}: {error})")

    return tried


def quiet_lightning() -> None:
    """Silence Lightning's messages at a start, which are not about the user's run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for about in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*checkpoint directory.*",
        ".*broadcast_buffers.*",
        # resume.py decides whether a run may go on without quantization-aware training
        r".*following callbacks: \['QuantizationAwareTraining'\].*",
        ".*sync_dist=True.*",  # scores are summed over ranks before they are logged
    ):
        warnings.filterwarnings("ignore", about)
