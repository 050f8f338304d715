"""The SSD scan by Triton kernels, as one operator for autograd and `torch.compile`.

Source: Dao and Gu, "Transformers are SSMs" (2024), section 6; equations in `ssd_kernels`.
Legend: B batch, T positions, H heads, P head width, G groups, N state size, K chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_lm.model.ssd_launch import backward, empty_states, forward


def triton_ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `jepa_lm.model.ssd.ssd` with Triton; arguments and results as there, without `chunk`.

    P and N are at most `ssd_launch.MAX_WIDTH`; x, b and c share one dtype: bfloat16, float16 or float32.
    Views whose last dimension is contiguous are read without a copy. The state that comes back is float32.
    """
    before = None if state is None else state.float()
    y, last, _ = torch.ops.jepa_lm.ssd(x, dt, a, b, c, before)
    return y, last


SCAN = (
    "(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? state) -> (Tensor, Tensor, Tensor)"
)
GRADIENTS = (
    "(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor states, Tensor? dy, Tensor? d_last)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_scan = torch.library.custom_op("jepa_lm::ssd", forward, mutates_args=(), schema=SCAN)
_gradients = torch.library.custom_op(
    "jepa_lm::ssd_backward", backward, mutates_args=(), schema=GRADIENTS
)


@_scan.register_fake
def _(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *empty_states(x, b)


@_gradients.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    dy: Tensor | None,
    d_last: Tensor | None,
) -> tuple[Tensor, ...]:
    first = empty_states(x, b)[0]
    return (*(v.new_empty(v.shape) for v in (x, dt, a, b, c)), first)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # no zeros for outputs without a gradient
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*inputs[:5], output[2])
    ctx.starts = inputs[5] is not None


def _backward(
    ctx: Any, dy: Tensor | None, d_last: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    *gradients, first = torch.ops.jepa_lm.ssd_backward(*ctx.saved_tensors, dy, d_last)
    return (*gradients, first if ctx.starts else None)


_scan.register_autograd(_backward, setup_context=_save)
