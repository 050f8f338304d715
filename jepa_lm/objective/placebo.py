"""The placebo: targets of other rows, which cannot be predicted, in place of a row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lm.objective.step_context import Draws, StepContext, draw_now, on_device
from jepa_lm.utils.errors import EveryRankError

PLACEBO = "placebo"
"""Place of its draws in a step context."""


def of_another_row(target: Tensor, step_context: StepContext) -> Tensor:
    """Return latents [B, N, D], or tokens, with their rows rotated by a random shift, see `other_rows`."""
    (order,) = step_context.drawn or draw_now(other_rows, len(target), step_context, target.device)
    return target[order]


def other_rows(
    rows: int, step_context: StepContext, device: torch.device, node: str = "jepa"
) -> Draws:
    """Draw the row whose target each row gets, [B]; `node` is the key of the objective.

    It is at least a quarter of the batch away, in either direction: rows next to each other are often of one
    document (`data.order=stream`), whose targets are not without information.
    """
    if rows < 2:
        raise EveryRankError(
            f"{node}.placebo=true: each row gets the target of another row, so a micro-batch needs at least "
            "two sequences; raise data.batch_tokens or lower trainer.accumulate_grad_batches"
        )
    near = max(1, rows // 4)
    shift = torch.randint(near, rows - near + 1, (1,), generator=step_context.generator(0, PLACEBO))
    return (on_device((torch.arange(rows) + shift) % rows, device),)
