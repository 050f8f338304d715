"""Lightning's Trainer, made from our settings."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import PassThroughProfiler

from jepa_lm.callbacks.checkpoints import AtomicCheckpointIO, SaveCheckpoints
from jepa_lm.config import build
from jepa_lm.errors import UserError
from jepa_lm.trusted import Trust


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
    if (algorithm := settings.get("gradient_clip_algorithm")) not in (None, "norm"):
        raise UserError(
            f"trainer.gradient_clip_algorithm={algorithm}: gradients are clipped by norm"
        )
    saver = SaveCheckpoints(
        folder=f"{config['paths']['run_dir']}/checkpoints", **config["checkpoint"]
    )
    settings.pop("max_time")
    settings["max_steps"] = settings["max_steps"] or -1
    every = settings.pop("val_check_interval")
    if every is not None:
        # Lightning counts micro-batches; a user means optimizer steps.
        settings["val_check_interval"] = every * settings["accumulate_grad_batches"]
        settings["check_val_every_n_epoch"] = None
    try:
        ours = {
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "profiler": _profiler(settings.pop("profiler", None)),
            "callbacks": [*build("callbacks", config["callbacks"]).values(), saver],
            "plugins": [AtomicCheckpointIO(Trust.of(config))],
            "logger": [*build("logger", config["logger"]).values()],
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
