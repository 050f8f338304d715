"""Alignment of displacements: how latents move along one stretch of a text predicts how they move elsewhere.

Legend: B batch, N latents of a row, D width.
Source: semantic tube prediction, STP (2602.22617), and its released code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa_lm.objective.alignment import Alignment, Given, Pair, apply
from jepa_lm.objective.predictors import Predictor
from jepa_lm.objective.step_context import Draws, StepContext, draw_now, on_device
from jepa_lm.objective.views import joint_rows
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Seed, checked

FEWEST = 3
"""Latents that a document must have."""


class Displacements(Alignment):
    """One pair of displacements a row: with a cosine distance, latents are asked to move in a straight line.

    Positions are drawn uniformly, without repetition, within one document of the row, which is drawn with a
    probability in proportion to its length; padding is part of none. A row counts only if its document has
    three latents. Pooled latents belong to no single position, and there a row is one document.

    Args:
        form: `triple` (the paper): for s < r < t, the move from s to r predicts that from r to t. `span` (the
            released code): for a < b, the moves from the document's first latent to a and from b to its last,
            added up, predict the move from a to b; a row whose span is its whole document does not count.
        seed: seed of the draws.
    """

    @checked
    def __init__(self, *, form: Literal["triple", "span"], seed: Seed) -> None:
        super().__init__()
        self.form, self.seed = form, seed

    def check(self, latents: int) -> None:
        if latents < FEWEST:
            raise UserError(
                f"jepa.alignment: Displacements needs {FEWEST} latents in a row, and there are {latents}; "
                "raise data.seq_len, or pool less"
            )

    def draw(
        self, rows: int, latents: int, step_context: StepContext, device: torch.device
    ) -> Draws:
        """Return a random score for each latent, [B, N]: the highest ones of a document are chosen."""
        joint, mine = joint_rows((rows, latents), step_context)
        generator = step_context.generator(self.seed, "displacements")
        return (on_device(torch.rand(joint, generator=generator)[mine], device),)

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        rows, latents = context.shape[:2]
        assert given.step_context is not None
        (scores,) = given.step_context.drawn or draw_now(
            self.draw, rows, latents, given.step_context, context.device
        )
        same = _one_document(scores, given.starts, given.of_text)
        counts = same.sum(1, keepdim=True) >= FEWEST  # [B, 1]
        count = 3 if self.form == "triple" else 2
        chosen = scores.masked_fill(~same, -1.0).topk(count, dim=1).indices.sort(dim=1).values
        # A difference of bfloat16 would lose digits.
        before, after = context.float(), target.float()
        if self.form == "triple":
            s, r, t = chosen.unbind(1)
            moved, ahead = _at(before, r) - _at(before, s), _at(after, t) - _at(after, r)
        else:
            a, b = chosen.unbind(1)
            places = torch.arange(latents, device=same.device).expand_as(same)
            first = places.masked_fill(~same, latents - 1).amin(1)
            last = places.masked_fill(~same, 0).amax(1)
            whole = _at(before, last) - _at(before, first)
            moved, ahead = whole - (_at(before, b) - _at(before, a)), _at(after, b) - _at(after, a)
            counts = counts & ((a > first) | (b < last))[:, None]
        return [Pair(apply(predictor, moved), ahead, moved, 1.0, counts.float())]


def _one_document(scores: Tensor, starts: Tensor | None, of_text: Tensor | None) -> Tensor:
    """Return which latents of each row are in the document of the one with the highest score, [B, N] bool.

    Padding is in no document.
    """
    starts, of_text = (
        None if x is None or x.shape != scores.shape else x for x in (starts, of_text)
    )
    text = torch.ones_like(scores, dtype=torch.bool) if of_text is None else of_text
    if starts is None:
        return text
    document = starts.cumsum(1)
    first = scores.masked_fill(~text, -1.0).argmax(1, keepdim=True)
    return text & (document == document.gather(1, first))


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Return latents [B, 1, D] of x [B, N, D] at one place of each row, [B]."""
    return x.gather(1, places[:, None, None].expand(-1, 1, x.shape[-1]))
