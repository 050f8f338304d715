"""What is checked and said right before a run starts on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.values import check_values, named


def check_start(config: Mapping[str, Any]) -> None:
    """Check a resolved training config, which has passed `config.check`, before anything is built.

    Raises:
        UserError: naming the key, the value and what would be right.
    """
    check_values(config)
    check_processor(config)


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


def tell_limits(config: Mapping[str, Any]) -> None:
    """Say which schedules follow a limit that this run does not have, and so the other one."""
    others = {"steps": "time", "time": "steps"}
    for key, over in named("over", config):
        if over in others and config["trainer"][f"max_{over}"] is None:
            warn(f"{key}={over}: trainer.max_{over} is not set, so it follows the {others[over]}")
