"""What an encoder gets to see of the text: spans masked, tokens replaced, only a part.

Legend: B batch, T positions, N masked positions, D model width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic

from jepa_lm.model import Mask
from jepa_lm.objective.step_context import StepContext
from jepa_lm.utils.errors import UserError


class Seen(NamedTuple):
    """A view of a batch."""

    inputs: Tensor
    """[B, T'] int64."""
    mask: Mask | None
    positions: Tensor | None
    """Masked positions [N], the same in every row; None for a view that masks nothing."""


class View(nn.Module):
    """A way to look at a batch. `forward(inputs, step_context, purpose)` gives what is seen."""

    masks = False
    """Whether it names masked positions."""

    def check(self, seq_len: int, key: str) -> None:
        """Raise UserError when sequences of this length do not fit; `key` names the view."""

    def forward(self, inputs: Tensor, step_context: StepContext, purpose: str) -> Seen:
        """inputs [B, T] -> what is seen."""
        raise NotImplementedError


class SpanMask(View):
    """Masks a few spans, one set for all rows of a micro-batch (#1581).

    Lengths are geometric with the given mean on 1, 2, ..., clamped to [min_length, T max_share];
    starts are uniform. Sorted by start, a span that begins before the previous one ended begins
    there instead and keeps its end; what becomes shorter than min_length is dropped.

    Args:
        dim: D of the learned vector in the place of a masked embedding.
        start_std: it starts at N(0, start_std). #1581 starts it at zero, where an RMS norm multiplies
            gradients by 2900 (measured on a small model: norm 7e5 at the first step, against 3).
        spans: how many are drawn. mean_length, min_length: in tokens.
        max_share: longest span as a share of the sequence.
        hide_next: see `Mask`; #1581 leaves that trace.
        seed: of the draws.
    """

    masks = True

    def __init__(
        self,
        *,
        dim: int,
        spans: int,
        mean_length: float,
        min_length: int,
        max_share: float,
        hide_next: bool,
        start_std: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.spans, self.mean_length, self.min_length = spans, mean_length, min_length
        self.max_share, self.hide_next, self.seed = max_share, hide_next, seed
        self.vector = nn.Parameter(start_std * torch.randn(dim))
        if spans < 1 or min_length < 1 or mean_length <= 1 or not 0 < max_share <= 1:
            raise UserError(
                f"SpanMask: spans={spans}, mean_length={mean_length}, min_length={min_length}, "
                f"max_share={max_share}: at least 1 span, a mean above 1, a share in 0 to 1"
            )

    def check(self, seq_len: int, key: str) -> None:
        longest = int(seq_len * self.max_share)
        if longest < self.min_length:
            raise UserError(
                f"{key}.min_length={self.min_length}: a span may take at most max_share="
                f"{self.max_share} of data.seq_len={seq_len}, {longest} tokens; lower min_length or "
                f"set data.seq_len to {math.ceil(self.min_length / self.max_share)} or more"
            )

    def draw(self, length: int, generator: torch.Generator) -> list[tuple[int, int]]:
        """Spans [start, end) of a sequence, in order and without overlap; never empty."""
        chance = 1.0 / self.mean_length
        uniform = torch.rand(2, self.spans, generator=generator, dtype=torch.float64)
        raw = torch.ceil(torch.log1p(-uniform[0]) / math.log1p(-chance))
        lengths = raw.clamp(self.min_length, int(length * self.max_share)).long()
        starts = (uniform[1] * (length - lengths + 1)).long()
        spans: list[tuple[int, int]] = []
        end = 0
        for start, n in sorted(zip(starts.tolist(), lengths.tolist(), strict=True)):
            stop = start + n
            start = max(start, end)
            if stop - start >= self.min_length:
                spans.append((start, stop))
                end = stop
        return spans

    @torch.compiler.disable  # draws on the host; a compiler would take each draw for a constant
    def forward(self, inputs: Tensor, step_context: StepContext, purpose: str) -> Seen:
        spans = self.draw(inputs.shape[1], step_context.generator(self.seed, purpose))
        return self.mask(inputs, spans)

    def mask(self, inputs: Tensor, spans: list[tuple[int, int]]) -> Seen:
        """The batch with these spans masked."""
        positions = torch.cat([torch.arange(*span) for span in spans])
        where = torch.zeros(inputs.shape[1], dtype=torch.bool)
        where[positions] = True
        positions, where = (x.to(inputs.device, non_blocking=True) for x in (positions, where))
        maybe_mark_dynamic(positions, 0)  # their number varies: compile once for all of them
        return Seen(inputs, Mask(where, self.vector, self.hide_next), positions)


class RandomReplacement(View):
    """Replaces a share of the tokens by random ones (#1116).

    Args:
        rate: chance of each token. vocab_size: V. seed: of the draws.
    """

    def __init__(self, *, rate: float, vocab_size: int, seed: int) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise UserError(f"RandomReplacement: rate={rate}: must lie in 0 to 1")
        self.rate, self.vocab_size, self.seed = rate, vocab_size, seed

    @torch.compiler.disable  # draws on the host
    def forward(self, inputs: Tensor, step_context: StepContext, purpose: str) -> Seen:
        B, T = inputs.shape
        # Shared numbers are drawn for the joint batch: a row does not depend on the number of ranks.
        rank, ranks = (
            (0, 1) if step_context.per_rank else (step_context.rank, step_context.world_size)
        )
        generator = step_context.generator(self.seed, purpose)
        joint = (B * ranks, T)
        mine = slice(rank * B, (rank + 1) * B)
        chosen = (torch.rand(joint, generator=generator) < self.rate)[mine]
        tokens = torch.randint(self.vocab_size, joint, generator=generator)[mine]
        chosen, tokens = (x.to(inputs.device, non_blocking=True) for x in (chosen, tokens))
        return Seen(torch.where(chosen, tokens, inputs), None, None)


def split_at(seq_len: int, fraction: float) -> int:
    """floor(fraction T), with a whisker for fractions that binary numbers miss."""
    return math.floor(fraction * seq_len + 1e-9)


class Suffix(View):
    """The text from position floor(fraction T) on, as a sequence of its own (#1196)."""

    def __init__(self, *, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def check(self, seq_len: int, key: str) -> None:
        if not 0 < split_at(seq_len, self.fraction) < seq_len:
            raise UserError(
                f"{key}.fraction={self.fraction}: leaves no prefix or no suffix of "
                f"data.seq_len={seq_len}"
            )

    def forward(self, inputs: Tensor, step_context: StepContext, purpose: str) -> Seen:
        return Seen(inputs[:, split_at(inputs.shape[1], self.fraction) :], None, None)
