"""Lightning's Trainer, made from our settings."""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
from hydra.utils import instantiate
from lightning.pytorch.profilers import PassThroughProfiler

from jepa_lm.errors import UserError


def make_trainer(config: dict[str, Any]) -> pl.Trainer:
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


def quiet_lightning() -> None:
    """What Lightning says at a start is not about the user's run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for about in (".*does not have many workers.*", ".*LeafSpec.*", ".*checkpoint directory.*"):
        warnings.filterwarnings("ignore", about)
