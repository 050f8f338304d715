"""Checks and warnings right before a run starts on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from jepa_lm.training.estimate import check_card
from jepa_lm.utils.compiling import on_cpu
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.values import check_values, named


def check_start(config: Mapping[str, Any]) -> None:
    """Check a resolved training config that has passed `config.check`, before anything is built.

    Raises:
        UserError: a wrong value; names the key, the value and what would be right.
    """
    check_values(config)
    check_card(config["describe_for"])
    check_processor(config)


def check_processor(config: Mapping[str, Any]) -> None:
    """Refuse settings that a CPU cannot run, or would run differently from what the config records.

    Raises:
        UserError: such a setting; names the key, the value and what would be right.
    """
    trainer = config["trainer"]
    if not on_cpu(trainer):
        return
    kernel = config["model"].get("kernel")
    if kernel in ("triton", "mamba_ssm"):
        raise UserError(
            f"model.kernel={kernel}: needs trainer=gpu or trainer=ddp; this run is on the CPU"
        )
    if trainer["precision"] == "16-mixed":  # Lightning would compute in bfloat16 there
        raise UserError("trainer.precision=16-mixed: needs a GPU; bf16-mixed or 32-true on a CPU")


def check_devices(settings: dict[str, Any]) -> None:
    """Refuse a GPU run if PyTorch finds too few GPUs.

    Raises:
        UserError: too few; names the setting.
    """
    if settings["accelerator"] not in ("gpu", "cuda"):
        return
    found, wanted = torch.cuda.device_count(), settings["devices"]
    if not found:
        raise UserError(
            f"trainer.accelerator={settings['accelerator']}: PyTorch finds no GPU on this machine; use "
            "trainer=cpu, or trainer=ddp_sim for several processes"
        )
    if isinstance(wanted, int) and wanted > found:
        raise UserError(f"trainer.devices={wanted}: PyTorch finds {found} on this machine")


def tell_limits(config: Mapping[str, Any]) -> None:
    """Warn of schedules set to follow a limit that this run lacks, which then follow the other limit."""
    others = {"steps": "time", "time": "steps"}
    for key, over in named("over", config):
        if over in others and config["trainer"][f"max_{over}"] is None:
            warn(f"{key}={over}: trainer.max_{over} is not set, so it follows the {others[over]}")
