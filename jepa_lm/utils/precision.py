"""The number format that a run computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from jepa_lm.utils.errors import UserError

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Maps Lightning's names to the autocast dtype."""

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Names of native bfloat16 instructions on x86 and Arm."""


def resolve_precision(name: str, accelerator: str) -> str:
    """Return Lightning's name of the precision; `auto` is bf16-mixed if the hardware has bfloat16.

    On a processor without bfloat16 instructions, bf16-mixed would be slower than float32.

    Raises:
        UserError: an unsupported precision.
    """
    if name == "auto":
        gpu = accelerator in ("gpu", "cuda") or (
            accelerator == "auto" and torch.cuda.is_available()
        )
        return "bf16-mixed" if has_bfloat16("cuda" if gpu else "cpu") else "32-true"
    if name not in AUTOCAST:
        raise UserError(f"trainer.precision={name}: one of auto, {', '.join(AUTOCAST)}")
    return name


def has_bfloat16(device_type: str) -> bool:
    """Return whether this machine's GPU, or its processor, multiplies bfloat16 itself."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = torch.cpu.get_capabilities()
    return any(processor.get(name) for name in BF16_INSTRUCTIONS)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast computes products in, or None without autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast: bfloat16 products are too coarse for statistics and long sums."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
