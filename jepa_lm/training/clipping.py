"""Gradient clipping by norm, and skipping of steps whose gradient is NaN or infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


def clip_gradients(
    task: LanguageModelTask, optimizer: Optimizer, gradient_clip_val: float | None
) -> None:
    """Clip the gradient by its norm; skip the step if it is NaN or infinite and `guard.skip` allows."""
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    norms = torch._foreach_norm([p.grad for p in parameters]) if parameters else ()
    norm = torch.stack(norms).norm() if norms else torch.zeros((), device=task.device)
    step = task.trainer.global_step + 1
    scaled = task.trainer.precision == "16-mixed"  # the loss scaler skips bad steps itself
    if not scaled:
        task.guard.see(step, "gradient", norm)
    if gradient_clip_val is not None:
        nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm, foreach=True)
    task.training_log.gradient_norm = norm
    if task.guard.skip and not scaled and task.guard.skips(step, norm, task.global_rank):
        optimizer.zero_grad()
        task.training_log.drop()
