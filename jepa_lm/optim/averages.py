"""Copies of modules that follow by a moving average: copy <- m copy + (1 - m) online, in float32.

In bfloat16 a step of 1 - m = 0.001 is rounded away and a copy stands still. A copy holds buffers, not
parameters: no optimizer sees it, and it travels in checkpoints.
"""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from jepa_lm.errors import UserError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def as_buffers(module: AnyModule) -> AnyModule:
    """Turn a module's parameters into float32 buffers of the same names, in place."""
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                del owner._parameters[name]
                owner.register_buffer(name, parameter.detach().float().clone())
    return module


def keep_float32(module: nn.Module) -> None:
    """Undo a cast of a copy to another type."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                owner._buffers[name] = buffer.float()


def matched(follower: nn.Module, online: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The copy's tensors and the online parameters that they follow."""
    by_name = dict(online.named_parameters())
    pairs = [(b, by_name[n].detach()) for n, b in follower.named_buffers() if n in by_name]
    return [b for b, _ in pairs], [p for _, p in pairs]


@torch.no_grad()
def move_towards(copies: list[Tensor], online: list[Tensor], momentum: float) -> None:
    """One step of the average."""
    torch._foreach_lerp_(copies, [x.float() for x in online], 1.0 - momentum)


class WeightAverage(nn.Module, Generic[AnyModule]):
    """The moving average of a model's weights, as a model that can be scored.

    Args:
        model: what is followed; not stored. decay: m, the share that stays at every optimizer step.

    Raises:
        UserError: a decay outside [0, 1).
    """

    def __init__(self, model: AnyModule, *, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"average.decay={decay}: at least 0 and below 1, or null")
        self.decay = decay
        self.model: AnyModule = as_buffers(copy.deepcopy(model))

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        move_towards(*matched(self.model, model), self.decay)

    def _apply(self, fn: Any, recurse: bool = True) -> WeightAverage[AnyModule]:
        super()._apply(fn, recurse)
        keep_float32(self)
        return self
