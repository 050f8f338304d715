"""Moving average of a module, kept in float32 buffers: copy <- m copy + (1 - m) online."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def as_buffers(module: AnyModule, *, persistent: bool = True) -> AnyModule:
    """Turn a module's parameters into float32 buffers of the same names, in place.

    Args:
        persistent: they belong to the state that a checkpoint holds.
    """
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                del owner._parameters[name]
                value = parameter.detach().float().clone()
                owner.register_buffer(name, value, persistent=persistent)
    return module


def keep_float32(module: nn.Module) -> None:
    """Cast the floating-point buffers of a copy back to float32."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                owner._buffers[name] = buffer.float()


def matched(follower: nn.Module, online: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the copy's tensors and the online parameters that they follow, in the same order."""
    by_name = dict(online.named_parameters())
    pairs = [(b, by_name[n].detach()) for n, b in follower.named_buffers() if n in by_name]
    return [b for b, _ in pairs], [p for _, p in pairs]


@torch.no_grad()
def move_towards(copies: list[Tensor], online: list[Tensor], momentum: float) -> None:
    """Move the copies one step of the average: copy <- momentum copy + (1 - momentum) online, in place."""
    torch._foreach_lerp_(copies, [x.float() for x in online], 1.0 - momentum)
