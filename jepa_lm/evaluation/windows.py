"""Which targets are scored with which context. Every target is scored exactly once, tail included.

Legend: N tokens, T window length, B windows a batch.
"""

from __future__ import annotations

import numpy as np
import torch

from jepa_lm.data.stream import Batch, TokenStream


class StandardWindows(torch.utils.data.Dataset[Batch]):
    """Windows side by side: targets 1..N-1 in pieces of T, the last piece as long as is left.

    The first token of the stream has nothing before it and is no target.

    Args:
        stream: the validation tokens. seq_len: T. rows: B.
    """

    def __init__(self, stream: TokenStream, *, seq_len: int, rows: int) -> None:
        self.stream, self.seq_len, self.rows = stream, seq_len, rows
        self.full, self.tail = divmod(stream.total - 1, seq_len)

    def __len__(self) -> int:
        """Number of batches."""
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
