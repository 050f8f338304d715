"""What rows ask beside their next tokens: questions with answers, and labels for a probe.

Legend: R rows, T inputs of a row, A tokens of an answer, n labels of a row.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Questions(Protocol):
    """The questions of a data set. A row's question is what lies before its first target that counts."""

    answer_length: int
    """A, most tokens of an answer."""
    end: int | None
    """Token that ends an answer; None if every answer has A tokens."""
    rule_names: tuple[str, ...]
    """Names of the rules that `judge` goes by; each is a metric, `val/solved`."""

    def judge(
        self, rows: np.ndarray, starts: np.ndarray, answers: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return which answers are right by each rule, [R] bool.

        Args:
            rows: whole rows [R, T + 1], with the answers that the data give. starts: place in its row of the
                first token of each answer [R]. answers: what a model wrote, [R, A]; after the end of an
                answer, and where its row has no room left, it is filled with `end`.
        """


@runtime_checkable
class Planned(Protocol):
    """Questions with one token in each answer that has to be planned, while the others follow from it.

    How clearly a model prefers it is measured, too: a margin moves before the first answer is right.
    """

    margin_name: str
    """Name of the mean margin, in nats; it is logged, and no run is judged by it."""

    def planned(self, rows: np.ndarray) -> tuple[int, np.ndarray]:
        """Return the token's place in whole rows [R, T + 1], and the tokens [R, n] it must be told from."""


class Labels(NamedTuple):
    """What a linear probe reads out of a model's hidden states."""

    values: np.ndarray
    """[R, n], whole numbers from 0."""
    places: np.ndarray
    """[n], the input whose hidden state is to tell each label."""
