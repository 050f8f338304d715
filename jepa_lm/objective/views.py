"""Views: what an encoder sees of the text (masked spans, replaced tokens, or only a part).

Legend: B batch, T positions, N masked positions, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic

from jepa_lm.data.stream import Batch
from jepa_lm.model import Mask
from jepa_lm.objective.step_context import Draws, StepContext, draw_now, on_device
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import (
    Count,
    NotNegative,
    PositiveShare,
    Range,
    Seed,
    Share,
    Whole,
    checked,
)


class Packing(NamedTuple):
    """Several rows of inputs in one row that is encoded, without seeing each other."""

    order: Tensor
    """[B, T'] int64: which position of its rows, put end to end, each position of a packed row is."""
    block: Tensor
    """[B, T'] int64: which of its rows."""


class Seen(NamedTuple):
    """What an encoder sees of a batch."""

    inputs: Tensor
    """[B, T'] int64."""
    mask: Mask | None
    positions: Tensor | None
    """Masked positions [N], the same in every row; None for a view that masks nothing."""
    read: Tensor | None = None
    """Where latents are among all positions, row after row, [B, N]; None for all of them."""
    packing: Packing | None = None
    """How rows are packed into fewer before they are encoded; None if they are not."""

    def latents(self, hidden: Tensor) -> Tensor:
        """Return the latents [B, N, D] among hidden states [B', T', D] of the pass."""
        return hidden if self.read is None else hidden.flatten(0, 1)[self.read]


class View(nn.Module):
    """A view of a batch; `forward(inputs, step_context, purpose)` returns what is seen."""

    masks = False
    """True if the view masks positions, the same in every row."""
    shared = False
    """True if two losses read its pass, see `jepa_lm.objective.passes.own_pass`."""

    def check(self, seq_len: int, key: str) -> None:
        """Raise UserError if sequences of this length do not fit; `key` is the config key of the view."""

    def length(self, seq_len: int) -> int:
        """Return the length of what is seen of sequences of this length."""
        return seq_len

    def of(self, batch: Batch, step_context: StepContext, purpose: str) -> Seen:
        """Return what is seen of a batch; a view that reads more than its inputs overrides this."""
        return self(batch["inputs"], step_context, purpose)

    def forward(self, inputs: Tensor, step_context: StepContext, purpose: str) -> Seen:
        """inputs [B, T] -> what is seen."""
        raise NotImplementedError


class RandomView(View):
    """A view that depends on random draws, which are made apart: a compiled loss cannot make them."""

    def draw(
        self, shape: Sequence[int], step_context: StepContext, purpose: str, device: torch.device
    ) -> Draws:
        """Draw for inputs of this shape [B, T]; return what `see` takes."""
        raise NotImplementedError

    def see(self, inputs: Tensor, drawn: Draws) -> Seen:
        """Return what is seen of inputs [B, T], given the draws."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, step_context: StepContext, purpose: str) -> Seen:
        drawn = step_context.drawn
        if not drawn:
            drawn = draw_now(self.draw, inputs.shape, step_context, purpose, inputs.device)
        return self.see(inputs, drawn)


class SpanMask(RandomView):
    """Masked spans, the same for all rows of a micro-batch (#1581).

    Lengths are geometric with the given mean on 1, 2, ..., clamped to [min_length, T max_share];
    starts are uniform. In order of their starts, a span that overlaps the previous one starts at its end
    instead and keeps its own end; spans that become shorter than min_length are dropped.

    Args:
        dim: D, width of the learned vector that replaces a masked embedding.
        start_std: the vector starts at N(0, start_std). #1581 starts it at zero, where an RMS norm
            multiplies gradients by 2900 (measured on a small model: norm 7e5 at the first step instead
            of 3).
        spans: number of spans drawn. mean_length, min_length: in tokens.
        max_share: longest span as a share of the sequence.
        hide_next: see `Mask`; #1581 does not hide it.
        seed: seed of the draws.

    Raises:
        UserError: a value is out of range.
    """

    masks = True

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        spans: Count,
        mean_length: Annotated[float, Range(above=1)],
        min_length: Count,
        max_share: PositiveShare,
        hide_next: bool,
        start_std: NotNegative,
        seed: Seed,
    ) -> None:
        super().__init__()
        self.spans, self.mean_length, self.min_length = spans, mean_length, min_length
        self.max_share, self.hide_next, self.seed = max_share, hide_next, seed
        self.vector = nn.Parameter(start_std * torch.randn(dim))

    def check(self, seq_len: int, key: str) -> None:
        longest = int(seq_len * self.max_share)
        if longest < self.min_length:
            raise UserError(
                f"{key}.min_length={self.min_length}: a span may take at most max_share="
                f"{self.max_share} of data.seq_len={seq_len}, {longest} tokens; lower min_length or "
                f"set data.seq_len to {math.ceil(self.min_length / self.max_share)} or more"
            )

    def spans_of(self, length: int, generator: torch.Generator) -> list[tuple[int, int]]:
        """Draw spans [start, end) of a sequence, in order and without overlap; at least one."""
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

    def draw(
        self, shape: Sequence[int], step_context: StepContext, purpose: str, device: torch.device
    ) -> Draws:
        """Return the masked positions [N] int64, and which positions are masked, [T] bool."""
        spans = self.spans_of(shape[1], step_context.generator(self.seed, purpose))
        return self.masks_of(shape[1], spans, device)

    def masks_of(self, length: int, spans: list[tuple[int, int]], device: torch.device) -> Draws:
        """Return the masked positions [N] of these spans, and which positions are masked, [T]."""
        positions = torch.cat([torch.arange(*span) for span in spans])  # [N]
        where = torch.zeros(length, dtype=torch.bool)  # [T]
        where[positions] = True
        positions, where = on_device(positions, device), on_device(where, device)
        maybe_mark_dynamic(positions, 0)  # the number of positions varies: compile once for all
        return positions, where

    def see(self, inputs: Tensor, drawn: Draws) -> Seen:
        positions, where = drawn
        return Seen(inputs, Mask(where, self.vector, self.hide_next), positions)


class RandomReplacement(RandomView):
    """A share of the tokens replaced by random ones (#1116).

    Args:
        rate: probability of replacing a token. vocab_size: V. seed: seed of the draws.

    Raises:
        UserError: rate is not in (0, 1].
    """

    @checked
    def __init__(self, *, rate: PositiveShare, vocab_size: Count, seed: Seed) -> None:
        super().__init__()
        self.rate, self.vocab_size, self.seed = rate, vocab_size, seed

    def draw(
        self, shape: Sequence[int], step_context: StepContext, purpose: str, device: torch.device
    ) -> Draws:
        """Return which tokens are replaced, [B, T] bool, and by what, [B, T] int64."""
        joint, mine = joint_rows(shape, step_context)
        generator = step_context.generator(self.seed, purpose)
        chosen = (torch.rand(joint, generator=generator) < self.rate)[mine]
        tokens = torch.randint(self.vocab_size, joint, generator=generator)[mine]
        return on_device(chosen, device), on_device(tokens, device)

    def see(self, inputs: Tensor, drawn: Draws) -> Seen:
        chosen, tokens = drawn
        return Seen(torch.where(chosen, tokens, inputs), None, None)


class RandomMask(RandomView):
    """Positions masked at random, a share of each row that is drawn uniformly from `low` to `high`.

    The positions differ from row to row, so no alignment can pair them. Source: MIR (2606.06888).

    Args:
        dim: D, width of the learned vector that replaces a masked embedding.
        low, high: range of the share. first: positions before this one are never masked.
        hide_next: see `Mask`. start_std: the vector starts at N(0, start_std). seed: seed of the draws.

    Raises:
        UserError: a value is out of range, or low exceeds high.
    """

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        low: Share,
        high: Share,
        first: Whole,
        hide_next: bool,
        start_std: NotNegative,
        seed: Seed,
    ) -> None:
        super().__init__()
        if low > high:
            raise UserError(f"low={low}: must not exceed high={high}")
        self.low, self.high, self.first = low, high, first
        self.hide_next, self.seed = hide_next, seed
        self.vector = nn.Parameter(start_std * torch.randn(dim))

    def check(self, seq_len: int, key: str) -> None:
        if self.first >= seq_len:
            raise UserError(
                f"{key}.first={self.first}: leaves nothing to mask of data.seq_len={seq_len}; choose less"
            )

    def draw(
        self, shape: Sequence[int], step_context: StepContext, purpose: str, device: torch.device
    ) -> Draws:
        """Return which positions are masked, [B, T] bool."""
        joint, mine = joint_rows(shape, step_context)
        generator = step_context.generator(self.seed, purpose)
        share = self.low + (self.high - self.low) * torch.rand((joint[0], 1), generator=generator)
        where = torch.rand(joint, generator=generator) < share
        where[:, : self.first] = False
        return (on_device(where[mine], device),)

    def see(self, inputs: Tensor, drawn: Draws) -> Seen:
        (where,) = drawn
        return Seen(inputs, Mask(where, self.vector, self.hide_next), None)


def joint_rows(shape: Sequence[int], step_context: StepContext) -> tuple[tuple[int, int], slice]:
    """Return the shape [B', T] to draw for inputs [B, T], and which of its rows are this rank's.

    Shared draws cover the joint batch, so that a row does not depend on the number of ranks.
    """
    B, T = shape
    rank, ranks = (0, 1) if step_context.per_rank else (step_context.rank, step_context.world_size)
    return (B * ranks, T), slice(rank * B, (rank + 1) * B)


def split_at(seq_len: int, fraction: float) -> int:
    """Return floor(fraction T), with a small tolerance for rounding of the fraction."""
    return math.floor(fraction * seq_len + 1e-9)


class Suffix(View):
    """What follows a prefix, a `fraction` of the positions rounded down, as a sequence of its own (#1196)."""

    def __init__(self, *, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def check(self, seq_len: int, key: str) -> None:
        if not 0 < split_at(seq_len, self.fraction) < seq_len:
            raise UserError(
                f"{key}.fraction={self.fraction}: leaves no prefix or no suffix in "
                f"data.seq_len={seq_len}"
            )

    def length(self, seq_len: int) -> int:
        return seq_len - split_at(seq_len, self.fraction)

    def forward(self, inputs: Tensor, step_context: StepContext, purpose: str) -> Seen:
        return Seen(inputs[:, split_at(inputs.shape[1], self.fraction) :], None, None)
