"""Training batches from shards; each batch is a function of its number, so resuming is exact.

Legend: n tokens of one rank's micro-batch, T sequence length, W ranks, r this rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from jepa_lm.data.shards import open_shard
from jepa_lm.utils.epochs import windows_in
from jepa_lm.utils.errors import UserError

Batch = dict[str, Tensor]
"""`inputs` and `targets`, [B, T] int64; rows that are examples may have more, see `jepa_lm.data.rows`."""


class TokenStream:
    """The tokens of several shards as one endless loop.

    Args:
        paths: shard files, in order. limit: use only the first `limit` tokens, None for all.
    """

    def __init__(self, paths: list[Path], limit: int | None = None) -> None:
        self._open([open_shard(path) for path in paths], limit)

    @classmethod
    def of(cls, ids: np.ndarray) -> TokenStream:
        """Return a stream of tokens that are in memory."""
        return cls._over([ids], None)

    def _open(self, shards: list[np.ndarray], limit: int | None) -> None:
        self.shards, self.begins = shards, np.cumsum([0, *map(len, shards)])
        self.total = min(int(self.begins[-1]), limit or sys.maxsize)

    def first(self, limit: int | None) -> TokenStream:
        """Return the first `limit` tokens, None for all."""
        return self if limit is None else self._over(self.shards, min(limit, self.total))

    def parted(self, last: int) -> tuple[TokenStream, TokenStream]:
        """Return the stream without its last tokens, and these.

        Raises:
            UserError: nothing would be left.
        """
        cut = self.total - last
        if cut < 1:
            raise UserError(
                f"data.tuning={last}: the training split holds {self.total} tokens; keep fewer for tuning"
            )
        parts = zip(self.begins.tolist(), self.shards, strict=False)
        tail = [shard[max(0, cut - s) : max(0, self.total - s)] for s, shard in parts]
        return self.first(cut), self._over([part for part in tail if len(part)], None)

    @classmethod
    def _over(cls, shards: list[np.ndarray], limit: int | None) -> TokenStream:
        stream = cls.__new__(cls)
        stream._open(shards, limit)
        return stream

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` (int64) with the tokens that start at position `start` (any integer)."""
        filled = 0
        while filled < len(out):
            at = (start + filled) % self.total
            index = int(np.searchsorted(self.begins, at, side="right")) - 1
            shard, offset = self.shards[index], at - int(self.begins[index])
            count = min(len(out) - filled, len(shard) - offset, self.total - at)
            out[filled : filled + count] = shard[offset : offset + count]
            filled += count


class Order(Protocol):
    """The order of a run's tokens: which of them make up micro-batch number `index`."""

    def batch(self, stream: TokenStream, index: int) -> Batch:
        """Return this rank's micro-batch number `index`."""
        ...

    def places(self, total: int, index: int) -> np.ndarray:
        """Return the place of the first token of each row, [B]; numbers of rows that are examples."""
        ...

    def share(self, total: int) -> tuple[int, int]:
        """Return the amount a micro-step reads on all ranks, and the amount in a pass over `total` tokens."""
        ...


class StreamOrder:
    """The challenge's order: consecutive chunks of W (n + 1) tokens, rank r takes the r-th n + 1."""

    def __init__(self, *, tokens: int, seq_len: int, rank: int, world_size: int, seed: int) -> None:
        self.tokens, self.seq_len, self.rank, self.world_size = tokens, seq_len, rank, world_size

    def places(self, total: int, index: int) -> np.ndarray:
        first = (index * self.world_size + self.rank) * (self.tokens + 1)
        return first + np.arange(0, self.tokens, self.seq_len)

    def batch(self, stream: TokenStream, index: int) -> Batch:
        chunk = np.empty(self.tokens + 1, dtype=np.int64)
        stream.read(int(self.places(stream.total, index)[0]), chunk)
        tokens = torch.from_numpy(chunk)
        return {
            "inputs": tokens[:-1].view(-1, self.seq_len),
            "targets": tokens[1:].view(-1, self.seq_len),
        }

    def share(self, total: int) -> tuple[int, int]:
        """Count in tokens; the last target of a chunk is not an input of the next chunk."""
        return self.world_size * (self.tokens + 1), total


class ShuffleOrder:
    """Windows in random order, with a random offset; both are drawn again for each pass.

    The joint batch of all ranks is the same for any number of ranks.
    """

    def __init__(self, *, tokens: int, seq_len: int, rank: int, world_size: int, seed: int) -> None:
        self.rows, self.seq_len, self.seed = tokens // seq_len, seq_len, seed
        self.rank, self.world_size = rank, world_size
        self._pass = -1
        self._starts = np.empty(0, dtype=np.int64)

    def _start(self, window: int, total: int) -> int:
        """Return the first position of window number `window`, counted over all passes."""
        windows = windows_in(total, self.seq_len)
        number, place = divmod(window, windows)
        if number != self._pass:
            rng = np.random.default_rng([self.seed, number])
            offset = int(rng.integers(self.seq_len))
            self._starts = rng.permutation(windows) * self.seq_len + offset
            self._pass = number
        return int(self._starts[place])

    def places(self, total: int, index: int) -> np.ndarray:
        first = (index * self.world_size + self.rank) * self.rows
        return np.array([self._start(first + i, total) for i in range(self.rows)])

    def batch(self, stream: TokenStream, index: int) -> Batch:
        rows = np.empty((self.rows, self.seq_len + 1), dtype=np.int64)
        for row, place in zip(rows, self.places(stream.total, index), strict=True):
            stream.read(int(place), row)
        tokens = torch.from_numpy(rows)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}

    def share(self, total: int) -> tuple[int, int]:
        """Count in windows."""
        return self.world_size * self.rows, windows_in(total, self.seq_len)


ORDERS: dict[str, Callable[..., Order]] = {"stream": StreamOrder, "shuffle": ShuffleOrder}


def make_order(
    name: str, *, tokens: int, seq_len: int, rank: int, world_size: int, seed: int
) -> Order:
    """Return the order `name` (`stream` or `shuffle`) for one rank's micro-batches of `tokens` tokens."""
    return ORDERS[name](tokens=tokens, seq_len=seq_len, rank=rank, world_size=world_size, seed=seed)


class TrainBatches(torch.utils.data.IterableDataset[Batch]):
    """Endless micro-batches from number `first` on; `pin` puts them into page-locked memory."""

    def __init__(self, stream: TokenStream, order: Order, first: int, pin: bool = False) -> None:
        self.stream, self.order, self.first, self.pin = stream, order, first, pin

    def __iter__(self) -> Iterator[Batch]:
        index = self.first
        while True:
            batch = self.order.batch(self.stream, index)
            # A copy from page-locked memory is asynchronous only if it is contiguous.
            yield {k: t.contiguous().pin_memory() for k, t in batch.items()} if self.pin else batch
            index += 1
