"""The Triton kernels of mamba-ssm for the SSD scan, on machines that can run them."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from jepa_lm.utils.errors import UserError

KERNELS = ("auto", "torch", "triton")
TRITON_CHUNK = 256
"""Chunk length of mamba-ssm; its kernels tile inside a chunk."""


def has_triton() -> bool:
    """Return whether mamba-ssm is installed and a CUDA device is available."""
    return importlib.util.find_spec("mamba_ssm") is not None and torch.cuda.is_available()


def may_use_triton(kernel: str) -> bool:
    """Return whether CUDA tensors go to the Triton kernels.

    Args:
        kernel: `auto` uses them if they can run, `torch` never does, `triton` requires them.

    Raises:
        UserError: the name is unknown, or `triton` cannot run here.
    """
    if kernel not in KERNELS:
        raise UserError(f"model.kernel={kernel}: one of {', '.join(KERNELS)}")
    if kernel == "triton" and not has_triton():
        raise UserError(
            "model.kernel=triton: needs a CUDA device and the package mamba-ssm (pip install "
            "'jepa_lm[mamba]'); model.kernel=torch runs anywhere"
        )
    return kernel != "torch" and has_triton()


def triton_ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `jepa_lm.model.ssd.ssd` with the kernels of mamba-ssm; CUDA tensors only."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(
        x, dt, a, b, c, TRITON_CHUNK, initial_states=state, return_final_states=True
    )
