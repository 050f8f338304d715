"""Checks of a composed config for values that are each in range but would fail, or mislead, together.

Nothing here needs PyTorch or depends on this machine, because the plan of a sweep is checked here as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import LARGEST_SEED
from jepa_lm.utils.paths import program

ELSEWHERE = {
    "min_epochs": "a run ends with trainer.max_epochs, trainer.max_steps or trainer.max_time",
    "min_steps": "a run ends with trainer.max_epochs, trainer.max_steps or trainer.max_time",
    "limit_train_batches": "it would repeat the same batches; set trainer.max_steps, or data.train_tokens",
    "overfit_batches": "set data.train_tokens, as debug=overfit does",
    "fast_dev_run": "debug=tiny makes a short run",
    "barebones": "logger=none logs nothing",
    "check_val_every_n_epoch": "set trainer.val_check_interval, in steps",
    "num_sanity_val_steps": "nothing is validated before a run; debug=tiny makes a short run",
    "limit_test_batches": f"{program('eval')} scores the whole split",
    "limit_predict_batches": "nothing is predicted in batches",
    "reload_dataloaders_every_n_epochs": "the data has no epochs",
    "use_distributed_sampler": "each rank already takes its share of every batch",
    "enable_checkpointing": "set checkpoint.every_n_steps=null for a single checkpoint at the end",
    "enable_model_summary": "describe=true shows what would be trained",
    "callbacks": "add one with +callbacks.NAME._target_=...",
    "logger": "choose one with logger=",
    "plugins": "set trainer.precision, trainer.strategy or trainer.accelerator",
}
"""Settings of Lightning's Trainer that this project does not use, and what to use instead."""


def check_values(config: Mapping[str, Any]) -> None:
    """Check a resolved training config, which has passed `config.check`, before anything is built.

    Raises:
        UserError: names the key, the value and what would be right.
    """
    require_objective(config)
    check_trainer(config["trainer"])
    stride, seq_len = config["eval"]["stride"], config["data"]["seq_len"]
    if not 1 <= stride <= seq_len:
        raise UserError(
            f"eval.stride={stride}: from 1 to data.seq_len={seq_len}, or {program('eval')} eval=sliding "
            "could not score this run"
        )


def check_seed(key: str, seed: int) -> None:
    """Refuse a seed that NumPy does not accept."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{key}={seed}: a seed is a whole number from 0 to {LARGEST_SEED}")


def require_objective(config: Mapping[str, Any]) -> None:
    """Refuse a loss weight without an objective. A sweep over objectives drops it, and its plan says so.

    Raises:
        UserError: `jepa.weight` or `tokens.weight` is set but there is no such objective.
    """
    weight = config["tokens"].get("weight", 0.0)
    if weight and "_target_" not in config["tokens"]:
        raise UserError(
            f"tokens.weight={weight}: tokens=none has no loss to weigh; choose one, such as tokens=mtp"
        )
    weight = config["jepa"].get("weight", 0.0)
    if weight and "_target_" not in config["jepa"]:
        if "_target_" in config["tokens"]:
            raise UserError(
                f"jepa.weight={weight}: this objective predicts tokens and no latents; its weight is "
                "tokens.weight"
            )
        raise UserError(
            f"jepa.weight={weight}: objective=none has no loss to weigh; choose an objective, such as "
            "objective=patch"
        )


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse Trainer settings that would have no effect here, or a different one.

    Raises:
        UserError: names the setting and what to use instead.
    """
    for key, instead in ELSEWHERE.items():
        if settings.get(key) is not None:
            raise UserError(f"trainer.{key}={settings[key]}: not used here; {instead}")


def named(name: str, node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of this name, with its dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            below = f"{path}.{key}" if path else str(key)
            if key == name:
                yield below, value
            yield from named(name, value, below)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from named(name, value, f"{path}[{i}]")
