"""Whether `compile=null` compiles a run or an evaluation: if it is long enough to win this time back.

Two cores compile for about 40 seconds and then train about 1.3 times as fast. A GPU's host compiles for 28
to 52 seconds; an H100 then takes 83 instead of 193 ms for a step of #1243, which pays from 25 to 47 million
tokens on (docs/log.md). For a run the rule asks for the budget and the number of processes alone, so all
arms that share them get the same answer. Nothing here imports PyTorch, unless the devices are left open.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from jepa_lm.utils.errors import warn_once_per_machine


class Budget(NamedTuple):
    """The least that a run must be allowed to train; tokens are those of one process."""

    tokens: int
    seconds: float


CPU = Budget(tokens=5_000_000, seconds=600)
GPU = Budget(tokens=50_000_000, seconds=120)


def pays(config: Mapping[str, Any]) -> bool:
    """Return whether compiling pays in a run with this training config: neither of its limits is too low."""
    trainer = config["trainer"]
    least = CPU if on_cpu(trainer) else GPU
    steps, seconds = trainer["max_steps"], trainer["max_time"]
    tokens = None if steps is None else steps * config["data"]["batch_tokens"] / processes(trainer)
    many = tokens is None or tokens >= least.tokens
    return many and (seconds is None or seconds >= least.seconds)


def compiles(config: Mapping[str, Any], before: bool | None = None) -> bool:
    """Return whether a run is compiled; say so if it would be, but cannot.

    Args:
        config: the training config; `compile` may be null.
        before: whether the part of the run before a resume was compiled, which is kept; None for a new run.
    """
    chosen = config["compile"]
    if chosen is None:
        chosen = pays(config) if before is None else before
    return bool(chosen) and not _impossible(on_cpu(config["trainer"]))


def compiles_scoring(chosen: bool | None, tokens: int, cpu: bool) -> bool:
    """Return whether an evaluation is compiled; say so if it would be, but cannot.

    Args:
        chosen: eval.compile. tokens: how many the model reads in one process. cpu: whether it reads there.
    """
    if chosen is None:
        chosen = tokens >= (CPU if cpu else GPU).tokens
    return chosen and not _impossible(cpu)


def _impossible(cpu: bool) -> bool:
    if has_cpp_compiler() if cpu else has_c_compiler():
        return False
    lacking = (
        "C++ compiler (g++, or the one that CXX" if cpu else "C compiler (gcc, or the one that CC"
    )
    warn_once_per_machine(f"compile: needs a {lacking} names); not compiled")
    return True


def on_cpu(trainer: Mapping[str, Any]) -> bool:
    """Return whether a run with these settings of the trainer uses the CPU of this machine."""
    if trainer["accelerator"] != "auto":
        return trainer["accelerator"] == "cpu"
    import torch

    return not torch.cuda.is_available()


def processes(trainer: Mapping[str, Any]) -> int:
    """Return how many processes share a step under these settings of the trainer."""
    return devices_here(trainer) * int(trainer.get("num_nodes") or 1)


def devices_here(trainer: Mapping[str, Any]) -> int:
    """Return how many devices of a machine a run uses: a number, their indices, or what there is."""
    devices = trainer["devices"]
    if devices in ("auto", -1, "-1"):
        if on_cpu(trainer):
            return 1
        import torch

        return max(1, torch.cuda.device_count())
    if isinstance(devices, str):
        return len(devices.strip(",").split(",")) if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)


def has_c_compiler() -> bool:
    """Return whether this machine can compile what Triton writes to start its kernels."""
    named = os.environ.get("CC")
    return any(map(shutil.which, (named,) if named else ("gcc", "clang")))


def has_cpp_compiler() -> bool:
    """Return whether this machine can compile what `torch.compile` writes for a CPU."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", usual)) is not None
