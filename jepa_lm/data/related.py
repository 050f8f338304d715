"""Which rows of a micro-batch are of one document: a placebo must not take its target from such a row.

    order of the rows -> their places -> RELATED [B, B], in the batch -> the placebo's shift

Legend: B rows, T tokens of a row, S shifts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_lm.data.stream import Batch, Order, TokenStream
from jepa_lm.utils.errors import warn

RELATED = "related"
"""Field of a batch, [B, B] bool: which rows have a document in common, or text."""


class WithRelated:
    """An order whose batches say which of their rows are related.

    Args:
        order: of the rows. seq_len: T. document_start: the token that starts a document; None if there is
            none, and then only rows that overlap are known to be related.
        examples: rows are examples, each a document of its own. speak: warn, which one rank does.
    """

    def __init__(
        self,
        order: Order,
        *,
        seq_len: int,
        document_start: int | None,
        examples: bool,
        speak: bool = True,
    ) -> None:
        self.order, self.examples = order, examples
        self.seq_len, self.document_start = seq_len, document_start
        self._told = not speak
        self._found: dict[int, np.ndarray] = {}
        self._rows = self._own = 0

    def places(self, total: int, index: int) -> np.ndarray:
        """Return the places of its rows."""
        return self.order.places(total, index)

    def share(self, total: int) -> tuple[int, int]:
        """Return what the order says."""
        return self.order.share(total)

    @property
    def own_document(self) -> float:
        """Share of the rows so far whose target was of their own document."""
        return self._own / max(1, self._rows)

    def batch(self, stream: TokenStream, index: int) -> Batch:
        """Return a micro-batch; a warning tells once if no shift leads to other documents alone."""
        related = self._related(stream, self.places(stream.total, index))
        rows = len(related)
        own = int(related_rows(related, shifts(rows)).min()) if rows > 1 else 0
        self._rows, self._own = self._rows + rows, self._own + own
        if own and not self._told:
            self._told = True
            warn(
                f"placebo=true: in micro-batch {index} {own} of {rows} rows get a target of their own "
                "document, a quarter of the micro-batch away or more; no shift avoids it; told once"
            )
        return {**self.order.batch(stream, index), RELATED: related}

    def _related(self, stream: TokenStream, places: np.ndarray) -> Tensor:
        if self.examples:
            return torch.from_numpy(places[:, None] == places)
        begin, end = places % stream.total, places % stream.total + self.seq_len
        if self.document_start is not None:
            begin = np.array(
                [self._begin(stream, at, self.document_start) for at in begin.tolist()]
            )
        # A row at the end of the stream goes on at its beginning.
        loops = np.array([-1, 0, 1])[:, None, None] * stream.total
        apart = (begin[:, None] > end + loops) | (begin + loops > end[:, None])
        return torch.from_numpy(~apart.all(0))

    def _begin(self, stream: TokenStream, at: int, document_start: int) -> int:
        """Return where the document of the token at place `at` begins."""
        shard = int(np.searchsorted(stream.begins, at, side="right")) - 1
        for i in range(shard, -1, -1):
            if i not in self._found:  # a shard is searched once
                self._found[i] = np.flatnonzero(stream.shards[i] == document_start)
            begin, found = int(stream.begins[i]), self._found[i]
            if before := np.searchsorted(found, at - begin, side="right"):
                return begin + int(found[before - 1])
        return 0


def shifts(rows: int) -> Tensor:
    """Return the shifts by which rows may be rotated, [S]: at least a quarter of them, either way."""
    near = max(1, rows // 4)
    return torch.arange(near, rows - near + 1)


def related_rows(related: Tensor, among: Tensor) -> Tensor:
    """Return for each of some shifts [S] how many rows it would move onto a related one, [S]."""
    rows = torch.arange(len(related), device=related.device)
    return related[rows, (rows + among[:, None]) % len(related)].sum(1)
