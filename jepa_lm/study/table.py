"""A table of plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jepa_lm.study.formatting import NOTHING


@dataclass(frozen=True)
class Table:
    """Cells of text. The first `words` columns hold words, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """Addresses of what cells are about, by row and column; only HTML has them."""

    def without_empty(self) -> Table:
        """Return the table without empty columns, and without rows if only their names are left."""
        kept = [
            i
            for i in range(len(self.columns))
            if i == 0 or any(row[i] != NOTHING for row in self.rows)
        ]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows if len(kept) > 1)
        columns = tuple(self.columns[i] for i in kept)
        return Table(columns, rows, sum(i < self.words for i in kept))
