"""Rows of tokens from a law that is known: what a sample holds, and what every generator gives.

A generator draws its own law (matrices, a grammar, a graph) once, from the seed of its constructor, and rows
from the seed of `sample`. The tokens of row i are a function of that seed and of i alone, so a longer sample
begins with the shorter one.
Legend: R rows, T inputs of a row, K numbers of a latent, A tokens of an answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from jepa_lm.data.questions import Labels
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Range

Length = Annotated[int, Range(least=1, most=1 << 16)]
"""T."""
MOST_NUMBERS = 1 << 28
"""Most numbers of a sample: 1 GiB of float32."""
MOST_SCRATCH = 1 << 24
"""Most numbers held at a time that a sample does not keep: 128 MiB of float64."""


class Examples(NamedTuple):
    """A sample. Inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`."""

    tokens: np.ndarray
    """[R, T + 1] uint16."""
    nats: np.ndarray | None
    """[R, T] float32: -log of the true probability of each target, given all tokens before it; 0 for one
    that is not scored. None where that is not known."""
    latents: np.ndarray | None
    """[R, T, K] float32: what an objective may read at each input position."""
    answer: np.ndarray | None
    """[R, T] bool: the targets that are scored; None for all."""
    trained: np.ndarray | None = None
    """[R, T] bool: the targets that are trained on; None for those that are scored."""
    views: np.ndarray | None = None
    """[R, 4] int64: where the two views of a row start and stop among its inputs, first and second."""
    whole: np.ndarray | None = None
    """[R, T] bool: the targets that are no padding; None if all are."""


class Generator(ABC):
    """Source of rows. A subclass sets the attributes and turns uniform numbers into rows.

    One that asks questions sets `prompt_length` and `answer_length` and defines `solved`; it is then the
    `Questions` of its rows.
    """

    vocab_size: int
    length: int
    """T."""
    latent_dim: int | None = None
    """K; None if there are no latents."""
    names: list[str]
    """Name of each token: a row is printed as the names of its tokens, with a space between."""
    floor: float | None = None
    """What no model of the rows can be below: the expectation of `nats` per scored target, or a lower bound
    of it if the class says so. None where no closed form is known: the mean of `nats` estimates it."""
    prompt_length: int | None = None
    """Tokens of the question that starts a row; None if rows ask no question."""
    answer_length: int | None = None
    """A, the tokens that answer the longest question."""
    end: int | None = None
    """Token that ends an answer; None if every answer has A tokens."""
    rule_names: tuple[str, ...] = ("solved",)
    """Names of what `judge` returns."""
    label_names: tuple[str, ...] = ()
    """Names of what `labels` returns."""
    draws: int
    """Uniform numbers that make a row."""
    scratch: int = 1 << 12
    """About how many numbers are held for a row while it is drawn."""

    def sample(self, rows: int, seed: Sequence[int], held_out: bool = False) -> Examples:
        """Return `rows` rows.

        Args:
            seed: whole numbers >= 0. The same ones give the same rows.
            held_out: draw what training never asks, where a generator divides its questions; elsewhere
                another seed is all that sets training and validation apart.

        Raises:
            UserError: the sample would be too large.
        """
        most = MOST_NUMBERS // ((self.length + 1) * (2 + (self.latent_dim or 0)))
        if not 1 <= rows <= most:
            raise UserError(
                f"rows={rows}: expected from 1 to {most}, which is what memory allows for rows of "
                f"{self.length} tokens with {self.latent_dim or 0} latent numbers each"
            )
        drawn = [self._rows(uniform, held_out) for uniform in self._uniform(rows, seed)]
        tokens, *others = zip(*drawn, strict=True)
        return Examples(
            np.concatenate(tokens),
            *(None if parts[0] is None else np.concatenate(parts) for parts in others),
        )

    def _uniform(self, rows: int, seed: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the uniform numbers [.., draws] of all rows, as many rows at a time as memory allows."""
        rng, most = np.random.default_rng(list(seed)), max(1, MOST_SCRATCH // self.scratch)
        for start in range(0, rows, most):
            yield rng.random((min(most, rows - start), self.draws))

    @abstractmethod
    def _rows(self, uniform: np.ndarray, held_out: bool) -> Examples:
        """Return one row for each row of `uniform` [R, draws], numbers in [0, 1)."""

    def solved(self, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Return which answers are right, [R] bool.

        Args:
            prompts: [R, prompt_length]. answers: [R, answer_length], any tokens; what follows the end of an
                answer is not read.
        """
        raise NotImplementedError(f"{type(self).__name__} asks no question")

    def judge(
        self, rows: np.ndarray, starts: np.ndarray, answers: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Questions.judge`."""
        return {"solved": self.solved(rows[:, : self.prompt_length], answers)}

    def labels(self, rows: int, seed: Sequence[int]) -> dict[str, Labels]:
        """Return what a probe is asked about the rows that `sample` returns, by name; none if unknown."""
        return {}


def whole(uniform: np.ndarray, below: int) -> np.ndarray:
    """Return whole numbers from 0 to `below` - 1, equally likely, from uniform numbers of any shape."""
    return np.minimum((uniform * below).astype(np.int64), below - 1)  # the product may round up
