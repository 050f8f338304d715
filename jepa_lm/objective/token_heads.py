"""Heads of a token objective: from the hidden states of a pass to the logits of each offset.

A head returns the factors of its logits (`Readout`), so that no loss has to hold all of them.
Legend: B batch, T positions, D model width, V vocabulary, K offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.model.heads import Readout
from jepa_lm.model.layers import rms_norm
from jepa_lm.objective.predictors import CausalAttention
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, checked


class Read(NamedTuple):
    """What a head may read."""

    encoded: Encoded
    """The pass that predicts."""
    inputs: Tensor
    """The text [B, T] as it is, whatever that pass has seen of it."""
    train_table: bool
    """Whether the token table is trained through the tokens that a head reads."""


class TokenHead(nn.Module):
    """Map from a pass to logits."""

    is_shared = False
    """True if the logits are those of the language model itself, the same for every offset."""

    def check(self, model: LanguageModel, offsets: Sequence[int]) -> None:
        """Raise UserError if the head does not fit the model or the offsets."""

    def keep_tables(self, positions: int, device: torch.device) -> None:
        """Make what `forward` needs for so many positions, so that a compiled loss only reads it."""

    def forward(self, model: LanguageModel, read: Read) -> list[Readout]:
        """Return the logits of each offset; of one, if they are the same for all."""
        raise NotImplementedError


class SharedHead(TokenHead):
    """The logits of the language model, without a parameter: they are asked about later tokens as well."""

    is_shared = True

    def forward(self, model: LanguageModel, read: Read) -> list[Readout]:
        return [model.readout(read.encoded.final)]


class LinearHead(TokenHead):
    """A matrix [V, D] of its own for each offset, on the hidden states after the final norm.

    Args:
        dim: D. vocab_size: V. offsets: K.
    """

    @checked
    def __init__(self, *, dim: Count, vocab_size: Count, offsets: Count = 1) -> None:
        super().__init__()
        self.dim, self.vocab_size = dim, vocab_size
        self.maps = nn.ModuleList(nn.Linear(dim, vocab_size, bias=False) for _ in range(offsets))

    def check(self, model: LanguageModel, offsets: Sequence[int]) -> None:
        _check_width(self.dim, model)
        _check_number("offsets", len(self.maps), offsets)
        if self.vocab_size != model.vocab_size:
            raise UserError(
                f"tokens.head.vocab_size={self.vocab_size}: must equal model.vocab_size={model.vocab_size}"
            )

    def forward(self, model: LanguageModel, read: Read) -> list[Readout]:
        hidden = read.encoded.final.flatten(0, 1)
        weights = [each.weight for each in self.maps]
        return [Readout(hidden, weight, None, None) for weight in weights]  # type: ignore[arg-type]


class ParallelBlocks(TokenHead):
    """A transformer block of its own for each offset on the trunk's output, then the model's norm and head.

    Source: multi-token prediction (2404.19737).

    Args:
        dim: D. heads, hidden: of a block, see `CausalAttention`. blocks: K.
    """

    @checked
    def __init__(self, *, dim: Count, heads: Count, hidden: Count, blocks: Count) -> None:
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList(
            CausalAttention(dim=dim, heads=heads, hidden=hidden) for _ in range(blocks)
        )

    def check(self, model: LanguageModel, offsets: Sequence[int]) -> None:
        _check_width(self.dim, model)
        _check_number("blocks", len(self.blocks), offsets)

    def keep_tables(self, positions: int, device: torch.device) -> None:
        for block in self.blocks:
            assert isinstance(block, CausalAttention)
            block.keep_tables(positions, device)

    def forward(self, model: LanguageModel, read: Read) -> list[Readout]:
        return [_read_out(model, block(read.encoded.last)) for block in self.blocks]


class SequentialBlocks(ParallelBlocks):
    """Blocks in a chain, each of which is given the next token of the text (DeepSeek-V3, 2412.19437).

        h^k_t = block_k(M_k [rms(h^{k-1}_t), rms(e(x_{t+k}))])        h^0 = output of the trunk

    h^k predicts x_{t+k+1} through the model's norm and head, and e is the token table.

    Args:
        dim: D. heads, hidden: of a block, see `CausalAttention`. blocks: K; the offsets must be 1 .. K.
    """

    @checked
    def __init__(self, *, dim: Count, heads: Count, hidden: Count, blocks: Count) -> None:
        super().__init__(dim=dim, heads=heads, hidden=hidden, blocks=blocks)
        self.mixes = nn.ModuleList(nn.Linear(2 * dim, dim, bias=False) for _ in range(blocks))

    def check(self, model: LanguageModel, offsets: Sequence[int]) -> None:
        super().check(model, offsets)
        if list(offsets) != list(range(1, len(self.blocks) + 1)):
            raise UserError(
                f"tokens.offsets={list(offsets)}: SequentialBlocks goes forward token by token; set "
                f"{list(range(1, len(self.blocks) + 1))}"
            )

    def forward(self, model: LanguageModel, read: Read) -> list[Readout]:
        hidden, found = read.encoded.last, []
        with torch.set_grad_enabled(torch.is_grad_enabled() and read.train_table):
            embedded = model.embedding(read.inputs)  # [B, T, D]
        for k, (mix, block) in enumerate(zip(self.mixes, self.blocks, strict=True), start=1):
            # The last k positions get zeros in place of tokens that are unknown, and predict nothing.
            ahead = F.pad(embedded[:, k:], (0, 0, 0, k)).to(hidden.dtype)
            hidden = block(mix(torch.cat((rms_norm(hidden), rms_norm(ahead)), dim=-1)))
            found.append(_read_out(model, hidden))
        return found


def _read_out(model: LanguageModel, hidden: Tensor) -> Readout:
    return model.readout(rms_norm(hidden, model.final_norm_eps))


def _check_width(dim: int, model: LanguageModel) -> None:
    if dim != model.dim:
        raise UserError(f"tokens.head.dim={dim}: must equal model.dim={model.dim}")


def _check_number(key: str, number: int, offsets: Sequence[int]) -> None:
    if number != len(offsets):
        raise UserError(
            f"tokens.head.{key}={number}: tokens.offsets={list(offsets)}, make their number equal"
        )
