"""Lightning's Trainer, made from our settings."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.profilers import PassThroughProfiler

from jepa_lm.callbacks.checkpoints import AtomicCheckpointIO, SaveCheckpoints
from jepa_lm.config import build
from jepa_lm.errors import UserError, warn
from jepa_lm.trusted import Trust

ELSEWHERE = {
    "max_epochs": "a run ends with trainer.max_steps or trainer.max_time",
    "min_epochs": "a run ends with trainer.max_steps or trainer.max_time",
    "min_steps": "a run ends with trainer.max_steps or trainer.max_time",
    "limit_train_batches": "it would repeat the same batches; set trainer.max_steps, or data.train_tokens",
    "overfit_batches": "set data.train_tokens, as debug=overfit does",
    "fast_dev_run": "debug=tiny is a short run",
    "barebones": "logger=none logs nothing",
    "check_val_every_n_epoch": "set trainer.val_check_interval, in steps",
    "num_sanity_val_steps": "nothing is validated before a run; debug=tiny is a short one",
    "limit_test_batches": "eval.py scores, all of the split",
    "limit_predict_batches": "nothing is predicted in batches",
    "reload_dataloaders_every_n_epochs": "the data has no epochs",
    "use_distributed_sampler": "ranks take their share of each batch as it is",
    "enable_checkpointing": "set checkpoint.every_n_steps=null for one at the end",
    "enable_model_summary": "describe=true shows what would be trained",
    "callbacks": "add one with +callbacks.NAME._target_=...",
    "logger": "choose with logger=",
    "plugins": "set trainer.precision, trainer.strategy or trainer.accelerator",
}
"""Settings of Lightning's Trainer that this project does not have, and what it has instead."""
COUNTS = ("val_check_interval", "log_every_n_steps", "accumulate_grad_batches")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that would do nothing here, or something else.

    Raises:
        UserError: naming the setting, and what to use.
    """
    for key, instead in ELSEWHERE.items():
        if settings.get(key) is not None:
            raise UserError(f"trainer.{key}={settings[key]}: not used here; {instead}")
    for key in COUNTS:
        if (value := settings.get(key)) is not None and value < 1:
            raise UserError(f"trainer.{key}={value}: at least 1")
    if (algorithm := settings.get("gradient_clip_algorithm")) not in (None, "norm"):
        raise UserError(
            f"trainer.gradient_clip_algorithm={algorithm}: gradients are clipped by norm"
        )


def check_devices(settings: dict[str, Any]) -> None:
    """Refuse a GPU run where PyTorch sees too few.

    Raises:
        UserError: naming the setting.
    """
    if settings["accelerator"] not in ("gpu", "cuda"):
        return
    found, wanted = torch.cuda.device_count(), settings["devices"]
    if not found:
        raise UserError(
            f"trainer.accelerator={settings['accelerator']}: PyTorch sees no GPU here; use trainer=cpu, or "
            "trainer=ddp_sim for several processes"
        )
    if isinstance(wanted, int) and wanted > found:
        raise UserError(f"trainer.devices={wanted}: PyTorch sees {found} here")


def make_trainer(config: dict[str, Any]) -> pl.Trainer:
    """Lightning's Trainer; our own settings are taken out or translated."""
    settings = dict(config["trainer"])
    saver = SaveCheckpoints(
        folder=f"{config['paths']['run_dir']}/checkpoints", **config["checkpoint"]
    )
    settings.pop("max_time")
    settings["max_steps"] = -1 if settings["max_steps"] is None else settings["max_steps"]
    every = settings.pop("val_check_interval")
    if every is not None:
        # Lightning counts micro-batches; a user means optimizer steps.
        settings["val_check_interval"] = every * settings["accumulate_grad_batches"]
        settings["check_val_every_n_epoch"] = None
    try:
        loggers = [*build("logger", config["logger"]).values()]
        callbacks = build("callbacks", config["callbacks"]).values()
        ours = {
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "profiler": _profiler(settings.pop("profiler", None)),
            # Lightning's monitor of learning rates refuses to have nowhere to write them.
            "callbacks": [c for c in callbacks if loggers or not isinstance(c, LearningRateMonitor)]
            + [saver],
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


def _trim(trainer: pl.Trainer) -> None:
    """Take out of Lightning's loop what this project does in another way."""
    # Signals are ours (see stopping.py). Lightning's handler would start a collective inside a signal,
    # and with several ranks it asks for SIGTERM by a broadcast and a host read before every batch.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    loop = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    # It would inspect the signature of `training_step` before each call.
    loop._build_kwargs = _arguments  # type: ignore[method-assign]
    for logger in trainer.loggers:
        logger.finalize = _tried(logger.finalize)  # type: ignore[assignment, method-assign]


def _tried(finalize: Callable[[str], None]) -> Callable[[str], None]:
    """Lightning calls it when training is over: a logger's trouble must not cost the run its score."""

    @wraps(finalize)
    def tried(status: str) -> None:
        try:
            finalize(status)
        except Exception as error:
            warn(f"a logger could not write everything out ({type(error).__name__}: {error})")

    return tried


def _arguments(kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
    """What `training_step` takes."""
    return OrderedDict(kwargs, batch=batch, batch_idx=batch_idx)


class _NoProfiler(PassThroughProfiler):
    """Lightning enters a generator for each of some 40 profiled spans a step; this costs 1 us less each."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Measure nothing."""
        return self._nothing


def _profiler(name: str | None) -> Any:
    """Lightning's profiler of that name, or one that costs nothing."""
    return _NoProfiler() if name is None else name


def quiet_lightning() -> None:
    """What Lightning says at a start is not about the user's run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for about in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*checkpoint directory.*",
        ".*broadcast_buffers.*",
        ".*sync_dist=True.*",  # scores are added up over ranks before they are logged
    ):
        warnings.filterwarnings("ignore", about)
