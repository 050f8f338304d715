"""What is refused before a run starts: values that fit their types and could only fail, or mislead, later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from jepa_lm.errors import UserError, warn
from jepa_lm.evaluation.temperature import check_temperature
from jepa_lm.sampling import check_sampling
from jepa_lm.trainer import check_settings

LARGEST_SEED = 2**32 - 1
"""That every generator in use takes."""


AT_LEAST = {"ce_weight": 0, "z_loss_weight": 0, "model.dim": 1, "trainer.gradient_clip_val": 0}
"""Numbers that no class of ours checks, by dotted key."""


def check_start(config: Mapping[str, Any]) -> None:
    """Check a resolved training config, which has passed `config.check`, before anything is built.

    Raises:
        UserError: naming the key, the value and what would be right.
    """
    check_values(config)
    check_processor(config)


def check_values(config: Mapping[str, Any]) -> None:
    """The part of it that does not depend on this machine, for the plan of a sweep as well.

    Raises:
        UserError: naming the key, the value and what would be right.
    """
    for key, seed in sorted(_named("seed", config), key=lambda found: found[0].count(".")):
        if isinstance(seed, int):
            check_seed(key, seed)
    for key, least in AT_LEAST.items():
        node, _, name = key.rpartition(".")
        value = (config[node] if node else config).get(name)
        if value is not None and value < least:
            raise UserError(f"{key}={value}: at least {least}")
    require_objective(config)
    check_settings(config["trainer"])
    check_sampling(config["sampling"])
    check_temperature("temperature", config["temperature"])
    stride, seq_len = config["eval"]["stride"], config["data"]["seq_len"]
    if not 1 <= stride <= seq_len:
        raise UserError(
            f"eval.stride={stride}: from 1 to data.seq_len={seq_len}, or eval.py eval=sliding could not "
            "score this run"
        )


def check_seed(key: str, seed: int) -> None:
    """Refuse a seed that NumPy does not take."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{key}={seed}: a seed is a whole number from 0 to {LARGEST_SEED}")


def check_processor(config: Mapping[str, Any]) -> None:
    """Refuse what a CPU cannot do, or would do otherwise than the record says.

    Raises:
        UserError: naming the key, the value and what would be right.
    """
    trainer = config["trainer"]
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if accelerator != "cpu":
        return
    if config["model"].get("kernel") == "triton":
        raise UserError(
            "model.kernel=triton: needs trainer=gpu or trainer=ddp; this run is on the CPU"
        )
    if trainer["precision"] == "16-mixed":  # Lightning would compute in bfloat16 there
        raise UserError("trainer.precision=16-mixed: needs a GPU; bf16-mixed or 32-true on a CPU")


def tell_limits(config: Mapping[str, Any]) -> None:
    """Say which schedules follow a limit that this run does not have, and so the other one."""
    others = {"steps": "time", "time": "steps"}
    for key, over in _named("over", config):
        if over in others and config["trainer"][f"max_{over}"] is None:
            warn(f"{key}={over}: trainer.max_{over} is not set, so it follows the {others[over]}")


def require_objective(config: Mapping[str, Any]) -> None:
    """Refuse a weight of nothing. A sweep over objectives takes it out, and says so in its plan.

    Raises:
        UserError: `jepa.weight` is set and there is no objective.
    """
    weight = config["jepa"].get("weight", 0.0)
    if weight and "_target_" not in config["jepa"]:
        raise UserError(
            f"jepa.weight={weight}: there is nothing to weigh with objective=none; choose an objective, "
            "such as objective=patch"
        )


def _named(name: str, node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of this name, with its dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            below = f"{path}.{key}" if path else str(key)
            if key == name:
                yield below, value
            yield from _named(name, value, below)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _named(name, value, f"{path}[{i}]")
