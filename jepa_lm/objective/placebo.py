"""The placebo: targets of other rows, which cannot be predicted, in place of a row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lm.data.related import related_rows, shifts
from jepa_lm.data.stream import Batch
from jepa_lm.objective.step_context import Draws, StepContext, on_device
from jepa_lm.utils.errors import EveryRankError


def of_rows(
    order: Tensor, target: Tensor, of_text: Tensor | None, batch: Batch
) -> tuple[Tensor, Tensor | None, Batch]:
    """Return what belongs to the rows `order` [B] of a batch, for a placebo.

    That is the target latents [B, N, D], which of them are of text [B, N], and the batch with the tokens of
    these rows and which of the tokens count.
    """
    known: Batch = {name: batch[name][order] for name in ("targets", "answers") if name in batch}
    of_text = None if of_text is None else of_text[order]
    return target[order], of_text, {**batch, **known}


def other_rows(rows: int, step_context: StepContext, device: torch.device, node: str) -> Draws:
    """Draw the row whose target each row gets, [B]; `node` is the key of the objective.

    It is at least a quarter of the batch away, in either direction, and of another document: targets of the
    same one are not without information. If no shift achieves that for all rows, the one with the fewest such
    rows is taken.
    """
    if rows < 2:
        raise EveryRankError(
            f"{node}.placebo=true: each row gets the target of another row, so a micro-batch needs at least "
            "two sequences; raise data.batch_tokens or lower trainer.accumulate_grad_batches"
        )
    among = shifts(rows)
    drawn = torch.randint(len(among), (1,), generator=step_context.generator(0, "placebo"))
    among = on_device(among.roll(-int(drawn)), device)  # the drawn one is the first
    related = step_context.related
    chosen = 0 if related is None else related_rows(related, among).argmin()
    return ((torch.arange(rows, device=device) + among[chosen]) % rows,)
