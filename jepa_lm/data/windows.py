"""Windows that score every target of a text exactly once, tail included, and the context of each target.

A batch's `targets` [B, S] belong to the last S of its `inputs` [B, T]; earlier inputs are context.
Legend: N tokens, T window length, S scored positions per window, B windows per batch.
"""

from __future__ import annotations

import numpy as np
import torch

from jepa_lm.data.stream import Batch, TokenStream
from jepa_lm.utils.errors import UserError


class StandardWindows(torch.utils.data.Dataset[Batch]):
    """Windows side by side: targets 1..N-1 in pieces of T; the last piece is the remainder.

    The first token of the stream has no token before it and is not a target.

    Args:
        stream: the tokens. seq_len: T. rows: B. limit: largest N, None for all tokens.
    """

    def __init__(
        self, stream: TokenStream, *, seq_len: int, rows: int, limit: int | None = None
    ) -> None:
        self.stream, self.seq_len, self.rows = stream, seq_len, rows
        self.tokens = stream.total if limit is None else min(limit, stream.total)
        self.full, self.tail = divmod(self.tokens - 1, seq_len)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.full // self.rows) + (self.tail > 0)

    def __getitem__(self, index: int) -> Batch:
        start = index * self.rows * self.seq_len
        rows = min(self.rows, self.full - index * self.rows)
        shape = (rows, self.seq_len) if rows > 0 else (1, self.tail)
        if rows <= 0:
            start = self.full * self.seq_len
        chunk = np.empty(shape[0] * shape[1] + 1, dtype=np.int64)
        self.stream.read(start, chunk)
        tokens = torch.from_numpy(chunk)
        return {"inputs": tokens[:-1].view(shape), "targets": tokens[1:].view(shape)}


class SlidingWindows(torch.utils.data.Dataset[Batch]):
    """Overlapping windows: each target has at least T - stride tokens before it, if they exist.

    The first window scores all its targets, each later one its last `stride`; the last window ends with the
    text and scores the remainder. The tokens are kept on the device as integers, and the windows are cut
    there.

    Args:
        stream: the validation tokens. seq_len: T. stride: new targets per window, 1 to T.
        rows: B. device: device of the windows.

    Raises:
        UserError: the stride is not in 1 to T.
    """

    def __init__(
        self, stream: TokenStream, *, seq_len: int, stride: int, rows: int, device: torch.device
    ) -> None:
        if not 1 <= stride <= seq_len:
            raise UserError(f"eval.stride={stride}: 1 to the window length {seq_len}")
        ids = np.empty(stream.total, dtype=np.int32)
        stream.read(0, ids)
        self.tokens = torch.from_numpy(ids).to(device)
        self.seq_len, self.stride, self.rows = min(seq_len, stream.total - 1), stride, rows
        self.full, self.left = divmod(stream.total - 1 - self.seq_len, stride)

    def __len__(self) -> int:
        """Return the number of batches."""
        return 1 + -(-self.full // self.rows) + (self.left > 0)

    def __getitem__(self, index: int) -> Batch:
        T = self.seq_len
        if index == 0:
            return self._cut(self.tokens[None, : T + 1], T)
        first = 1 + (index - 1) * self.rows
        if first > self.full:
            return self._cut(self.tokens[None, -(T + 1) :], self.left)
        windows = self.tokens.unfold(0, T + 1, self.stride)
        last = min(first + self.rows, self.full + 1)
        return self._cut(windows[first:last], self.stride)

    @staticmethod
    def _cut(windows: torch.Tensor, scored: int) -> Batch:
        windows = windows.long()
        return {"inputs": windows[:, :-1], "targets": windows[:, -scored:]}
