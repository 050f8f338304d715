"""Which implementation of the SSD scan CUDA tensors go to; elsewhere it is always the PyTorch one."""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from jepa_lm.model.foreign_scan import Scan, as_operator
from jepa_lm.model.ssd_launch import MAX_WIDTH
from jepa_lm.model.ssd_triton import triton_ssd
from jepa_lm.utils.compiling import has_c_compiler
from jepa_lm.utils.errors import UserError, warn_once_per_machine

KERNELS = ("auto", "torch", "triton", "mamba_ssm")
MAMBA_SSM_CHUNK = 256
"""Chunk length of mamba-ssm; its kernels tile inside a chunk."""
MIN_CAPABILITY = (8, 0)
"""Oldest GPUs that multiply bfloat16."""
_OLDEST = ".".join(map(str, MIN_CAPABILITY))


def has_triton() -> bool:
    """Return whether this package's Triton kernels can run here; PyTorch for CUDA brings triton along."""
    return not _why_not_triton()


def _why_not_triton() -> str:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return f"the CUDA device is older than compute capability {_OLDEST}"
    return _triton_is_broken()


@functools.cache
def _triton_is_broken() -> str:
    """Return why the package triton cannot be used; that it is installed says little."""
    try:
        importlib.import_module("triton")
    except Exception as error:
        return f"the package triton cannot be imported ({type(error).__name__}: {error})"
    return "" if has_c_compiler() else "triton needs a C compiler (gcc, or the one that CC names)"


def cuda_scan(kernel: str, *, head_dim: int, state_dim: int) -> Scan | None:
    """Return the scan for CUDA tensors, or None if it is the PyTorch one.

    Args:
        kernel: `torch` is pure PyTorch. `triton` is this package's kernels, `mamba_ssm` those of the package
            mamba-ssm; both are required then. `auto` is `triton` where it can run, and `torch` elsewhere.

    Raises:
        UserError: the name is unknown, or what it requires cannot run here.
    """
    if kernel not in KERNELS:
        raise UserError(f"model.kernel={kernel}: one of {', '.join(KERNELS)}")
    if kernel == "torch":
        return None
    if kernel == "mamba_ssm":
        return _mamba_ssm_scan()
    fits, why_not = max(head_dim, state_dim) <= MAX_WIDTH, _why_not_triton()
    if fits and not why_not:
        return triton_ssd
    if kernel == "auto":
        if torch.cuda.is_available():
            _tell(why_not or f"head_dim={head_dim} or state_dim={state_dim} is above {MAX_WIDTH}")
        return None
    if not fits:
        raise UserError(
            f"model.kernel=triton: takes head_dim and state_dim up to {MAX_WIDTH}, not {head_dim} and "
            f"{state_dim}; model.kernel=torch takes any"
        )
    raise UserError(
        f"model.kernel=triton: needs a CUDA device (compute capability {_OLDEST} or newer) and the package "
        f"triton, but {why_not}; model.kernel=torch runs anywhere"
    )


@functools.cache
def _tell(why_not: str) -> None:
    """Say, once, that a GPU scans more slowly than it could."""
    warn_once_per_machine(
        f"model.kernel=auto: our kernels cannot run ({why_not}); the scan is PyTorch's, which is slower"
    )


def _mamba_ssm_scan() -> Scan:
    if not torch.cuda.is_available():
        raise UserError(
            "model.kernel=mamba_ssm: needs a CUDA device; model.kernel=torch runs anywhere"
        )
    scan, reason = _import_mamba_ssm()
    if scan is None:
        raise UserError(
            f"model.kernel=mamba_ssm: the package mamba-ssm cannot be imported ({reason}); pip install "
            "'jepa_lm[mamba]', or model.kernel=triton"
        )

    return scan


@functools.cache
def _import_mamba_ssm() -> tuple[Scan | None, str]:
    """Return mamba-ssm's scan, or None and why it cannot be imported.

    Whether the package is installed says little: its compiled parts may be built for another PyTorch.
    """
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"

    def scan(
        x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return mamba_chunk_scan_combined(
            x, dt, a, b, c, MAMBA_SSM_CHUNK, initial_states=state, return_final_states=True
        )

    return as_operator("mamba_ssm", scan), ""
