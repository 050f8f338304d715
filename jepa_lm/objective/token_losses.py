"""What a token objective asks of a position: a later token, the order of the next ones, or which they are.

Each builds its aims from the targets of a batch and scores logits against them, see `chunked_logits`.
`targets[b, t]` is the token after position t, so token x_{t+j} is `targets[b, t + j - 1]`. What lies beyond
the end of a row is unknown: it is never a target, and counts as absent from a window.
Legend: B batch, T positions, N = B T rows, V vocabulary, R rows of a chunk, W window, K offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.objective.chunked_logits import Aims
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Range, checked

Window = Annotated[int, Range(least=2)]


class TokenLoss(nn.Module):
    """A loss of logits against the tokens that follow a position."""

    needs_own_head = False
    """True if logits that mean the next token would have to mean something else as well."""

    def names(self, offsets: Sequence[int]) -> list[str]:
        """Return the names of the parts of the loss for these offsets, under which they are logged."""
        raise NotImplementedError

    def check(self, offsets: Sequence[int], seq_len: int) -> None:
        """Raise UserError if sequences of this length are too short, or the offsets do not fit."""

    def aims(
        self, targets: Tensor, weights: Tensor | None, offsets: Sequence[int], vocab_size: int
    ) -> Aims:
        """Return what `score` needs, for the rows (b, t) of targets [B, T].

        Args:
            weights: of the targets [B, T], as in the cross entropy; None means 1.
        """
        raise NotImplementedError

    def score(self, z: Tensor, shares: Tensor, *aims: Tensor) -> tuple[Tensor, Tensor]:
        """See `jepa_lm.objective.chunked_logits.Score`."""
        raise NotImplementedError


class LaterToken(TokenLoss):
    """Cross entropy of the token `offset` places after the next one, averaged over the rows that have one.

    Weighted targets are summed and divided by the number of rows, as in the cross entropy.
    """

    def names(self, offsets: Sequence[int]) -> list[str]:
        return [f"offset_{k}" for k in offsets]

    def check(self, offsets: Sequence[int], seq_len: int) -> None:
        if max(offsets) >= seq_len:
            raise UserError(
                f"tokens.offsets={list(offsets)}: data.seq_len={seq_len} has no token {max(offsets)} places "
                f"after the next one; use offsets up to {seq_len - 1}"
            )

    def aims(
        self, targets: Tensor, weights: Tensor | None, offsets: Sequence[int], vocab_size: int
    ) -> Aims:
        """Return targets [N, K] and the weight of each [N, K], 1 on average."""
        length, wanted, counts = targets.shape[1], [], []
        for k in offsets:
            each = targets.new_full(targets.shape, length / (length - k), dtype=torch.float32)
            each = each if weights is None else weights
            wanted.append(F.pad(targets[:, k:], (0, k)).flatten())
            counts.append(F.pad(each[:, k:], (0, k)).flatten())
        return Aims((torch.stack(wanted, 1), torch.stack(counts, 1)))

    def score(self, z: Tensor, shares: Tensor, *aims: Tensor) -> tuple[Tensor, Tensor]:
        wanted, weights = aims
        weights = weights.to(z.dtype)
        lse = z.logsumexp(1, keepdim=True)
        parts = (weights * (lse - z.gather(1, wanted))).sum(0)
        weights = weights * shares.to(z.dtype)
        grad = weights.sum(1, keepdim=True) * (z - lse).exp()
        return parts, grad.scatter_add(1, wanted, -weights)


class _Windowed(TokenLoss):
    """A loss against the tokens in a window after a position.

    Args:
        window: W, see the subclass.
    """

    needs_own_head = True
    name = ""

    @checked
    def __init__(self, *, window: Window) -> None:
        super().__init__()
        self.window = window

    def names(self, offsets: Sequence[int]) -> list[str]:
        return [self.name]

    def check(self, offsets: Sequence[int], seq_len: int) -> None:
        if list(offsets) != [0]:
            raise UserError(
                f"tokens.offsets={list(offsets)}: {type(self).__name__} looks at a whole window; set [0]"
            )
        if self.window > seq_len:
            raise UserError(
                f"tokens.token.window={self.window}: longer than data.seq_len={seq_len}; "
                f"choose 2 to {seq_len}"
            )

    def aims(
        self, targets: Tensor, weights: Tensor | None, offsets: Sequence[int], vocab_size: int
    ) -> Aims:
        """Return where the window of each row starts [N, 1] and its weight [N, 1], and all tokens in a line.

        In the line, V stands for a token that is unknown or does not count.
        """
        if weights is not None:
            targets = targets.masked_fill(weights == 0, vocab_size)
        rows, length = targets.shape
        line = F.pad(targets, (0, self.window), value=vocab_size)  # [B, T + W]
        places = torch.arange(line.numel(), device=line.device).view(line.shape)[:, :length]
        counts = self._counts(length, line.device).expand(rows, length)
        by_row = (places.reshape(-1, 1), counts.reshape(-1, 1))
        return Aims(by_row, (line.flatten(),), width=self.window)

    def _counts(self, length: int, device: torch.device) -> Tensor:
        """Return the weight of each position [T], 1 on average."""
        return torch.ones(length, device=device)

    def _future(self, places: Tensor, line: Tensor, first: int, last: int) -> Tensor:
        """Return the tokens at distances `first` to `last` from each row [R, last - first + 1]."""
        return line[places + torch.arange(first - 1, last, device=line.device)]


class TokenOrder(_Windowed):
    """Order of the next tokens (TOP, 2508.19228): cross entropy to softmax(W - distance).

    The distance of a token is that to its next occurrence, and tokens whose distance is not below W get
    nothing. A row counts as 0 if nothing in its window is known.

    Args:
        window: W. The last rows of a sequence see less than a window, as no text beyond it is read.
    """

    name = "order"

    def score(self, z: Tensor, shares: Tensor, *aims: Tensor) -> tuple[Tensor, Tensor]:
        places, weights, line = aims
        vocab = z.shape[1]
        tokens = self._future(places, line, 1, self.window - 1)  # [R, W - 1]
        near = torch.arange(self.window - 1, 0, -1, device=z.device).to(z.dtype)
        nowhere = z.new_full((len(z), vocab + 1), float("-inf"))
        scores = nowhere.scatter_reduce(1, tokens, near.expand(tokens.shape), "amax")[:, :vocab]
        known = (tokens < vocab).any(1, keepdim=True)
        law = scores.where(known, scores.new_zeros(())).softmax(1) * known
        log_z = z.log_softmax(1)
        weights = weights.to(z.dtype)
        loss = -(weights * law * log_z).sum()
        return loss[None], shares.to(z.dtype) * weights * (known * log_z.exp() - law)


class TokenBag(_Windowed):
    """Which tokens come after the next one, in any order (FSP-BCE, 2510.14751).

    Binary cross entropy, averaged over the vocabulary, of whether a token is among x_{t+2} .. x_{t+W}; over
    the rows whose window ends within the sequence. A row counts as 0 if the last token of its window does not
    count: padding is not text in which no token comes.

    Args:
        window: W.
    """

    name = "bag"

    def _counts(self, length: int, device: torch.device) -> Tensor:
        whole = length - self.window + 1
        there = torch.arange(length, device=device) < whole
        return there.float() * (length / whole)

    def score(self, z: Tensor, shares: Tensor, *aims: Tensor) -> tuple[Tensor, Tensor]:
        places, weights, line = aims
        vocab = z.shape[1]
        tokens = self._future(places, line, 2, self.window)  # [R, W - 1]
        found = z.new_zeros((len(z), vocab + 1)).scatter(1, tokens, 1.0)[:, :vocab]
        weights = weights.to(z.dtype) / vocab * (tokens[:, -1:] < vocab)
        loss = (weights * (F.softplus(z) - found * z)).sum()
        return loss[None], shares.to(z.dtype) * weights * (z.sigmoid() - found)
