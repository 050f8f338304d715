"""A scan of another package as one operator, which a compiler does not look into.

The package's function runs as it is; its gradient comes from its own backward pass, after the forward pass
has been run once more, because an operator cannot keep the other package's graph.
Legend: B batch, T positions, H heads, P head width, G groups, N state size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Scan: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""A function of x, dt, a, b, c, state, as `jepa_lm.model.ssd.ssd`."""
SCAN = "(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? state) -> (Tensor, Tensor)"
GRADIENTS = (
    "(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? state, Tensor dy, Tensor d_last)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def as_operator(name: str, scan: Scan) -> Scan:
    """Register a scan as the operator `jepa_lm::name`; return a function that calls it.

    It is a plain function because a model that holds it is copied, and an operator cannot be.

    The scan must be a `torch.autograd.Function`: inside an operator, autograd sees nothing else. y has the
    dtype of x, and the state [B, H, P, N] is float32 or, for float64, float64.
    """

    def forward(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        y, last = scan(*inputs)
        return y.contiguous(), last.to(_state_dtype(inputs[0])).contiguous()

    def backward(*inputs: Tensor | None) -> tuple[Tensor, ...]:
        *given, dy, d_last = inputs
        leaves = [None if x is None else x.detach().requires_grad_() for x in given]
        with torch.enable_grad():
            y, last = scan(*leaves)
        wanted = [x for x in leaves if x is not None]
        assert dy is not None
        assert d_last is not None
        upstream = (dy.to(y.dtype), d_last.to(last.dtype))
        found = list(torch.autograd.grad((y, last), wanted, upstream))
        if leaves[5] is None:
            found.append(last.new_empty(0))
        return tuple(x.contiguous() for x in found)

    operator = torch.library.custom_op(f"jepa_lm::{name}", forward, mutates_args=(), schema=SCAN)
    gradients = torch.library.custom_op(
        f"jepa_lm::{name}_backward", backward, mutates_args=(), schema=GRADIENTS
    )

    @operator.register_fake
    def _(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None) -> Any:
        shape = (x.shape[0], *x.shape[2:], b.shape[3])
        return x.new_empty(x.shape), x.new_empty(shape, dtype=_state_dtype(x))

    @gradients.register_fake
    def _(*inputs: Tensor | None) -> tuple[Tensor, ...]:
        *given, _, d_last = inputs
        assert d_last is not None
        return tuple(d_last.new_empty(0) if x is None else x.new_empty(x.shape) for x in given)

    def save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    def differentiate(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        found = gradients(*given, dy, d_last)
        return tuple(None if x is None else g for x, g in zip(given, found, strict=True))

    operator.register_autograd(differentiate, setup_context=save)

    def call(
        x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        y, last = getattr(torch.ops.jepa_lm, name)(x, dt, a, b, c, state)
        return y, last

    return call


def _state_dtype(x: Tensor | None) -> torch.dtype:
    return torch.float64 if x is not None and x.dtype == torch.float64 else torch.float32
