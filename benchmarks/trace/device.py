"""Makes PyTorch's CPU build believe in one H100, for fake tensors only.

`pretend` changes this process for good, so what calls it has a process of its own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lm.utils.errors import UserError

DEVICE = torch.device("cuda", 0)
H100 = dict(
    name="H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
"""What `torch.cuda.get_device_properties` says of it."""


def pretend() -> None:
    """From now on, this process has one H100; its tensors must be made under a `FakeTensorMode`.

    The guard must have been loaded.
    """
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_bf16_supported": True,
        "_lazy_init": None,
        "synchronize": None,
        "get_device_properties": SimpleNamespace(**H100),
        "get_device_capability": (H100["major"], H100["minor"]),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "current_stream": SimpleNamespace(cuda_stream=0),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, _always(answer))
    torch.cuda.device = _Here  # type: ignore[misc, assignment]
    F.scaled_dot_product_attention = _flash_attention
    torch.Tensor.new_tensor = _new_tensor  # type: ignore[assignment, method-assign]


def _always(answer: Any) -> Any:
    return lambda *args, **settings: answer


class _Here:
    """`torch.cuda.device`, which has nowhere to go."""

    def __init__(self, *args: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *args: Any) -> None:
        pass


_chosen_attention = F.scaled_dot_product_attention


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as PyTorch runs it on an H100; its choice of a kernel would ask the device itself.

    Raises:
        UserError: FlashAttention does not take these inputs, and a GPU would hold all scores.
    """
    if not query.is_cuda:  # a check on the meta device
        return _chosen_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if dtype == torch.float32 or attn_mask is not None:
        what = "a mask" if attn_mask is not None else "float32"
        raise UserError(f"trace: attention with {what}: FlashAttention takes neither")
    q, k, v = (x.to(dtype) for x in (query, key, value))
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    found: Tensor = flash(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
    return found


def _new_tensor(self: Tensor, data: Any, **settings: Any) -> Tensor:
    """`Tensor.new_tensor` without values, which it would copy to the device at once."""
    shape = torch.tensor(data, device="cpu").shape
    return self.new_empty(shape, **settings)
