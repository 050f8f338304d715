"""Hidden Markov models: the law of the next state is filtered exactly, and with it the floor of the loss.

A state i emits symbol x and moves to state j with probability edges[x, i, j]. The latents of input t are the
law of the state that emits target t, given inputs 0..t: its product with `emission` is the law of the target.
Legend: K states, V symbols, R rows, T inputs.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from scipy.special import entr

from jepa_lm.data.synthetic.examples import Examples, Generator, Length
from jepa_lm.utils.kinds import Decay, Positive, Range, Seed, Share, checked

Size = Annotated[int, Range(least=2, most=128)]
"""So that V x K x K numbers fit in memory."""


def stationary(chain: np.ndarray) -> np.ndarray:
    """Return the law [K] that a matrix of transitions [K, K], rows to columns, leaves as it is."""
    states = len(chain)
    unchanged = np.vstack([chain.T - np.eye(states), np.ones(states)])
    law = np.linalg.lstsq(unchanged, np.append(np.zeros(states), 1.0), rcond=None)[0]
    law = np.clip(law, 0, None)
    return law / law.sum()


class EdgeEmitting(Generator):
    """A hidden Markov model that starts from its stationary law.

    Args:
        edges: [V, K, K] float64, summing to one over x and j for each i. names: of the symbols.
    """

    def __init__(self, edges: np.ndarray, names: list[str], length: int) -> None:
        self.edges, self.names, self.length = edges, names, length
        self.vocab_size, self.latent_dim = edges.shape[:2]
        self.draws = length + 2  # the first state, and T + 1 edges
        self.scratch = 4 * (self.draws + self.latent_dim)
        self.emission = edges.sum(2).T
        """[K, V]."""
        self.start = stationary(edges.sum(0))
        """[K], the law of the state that emits the first token."""
        outcomes = np.cumsum(edges.transpose(1, 0, 2).reshape(self.latent_dim, -1), axis=1)
        # The outcomes of state i divide [i, i + 1), so one sorted array serves all states.
        self._ends = (outcomes / outcomes[:, -1:] + np.arange(self.latent_dim)[:, None]).ravel()
        self._start_ends = np.cumsum(self.start) / self.start.sum()

    def _rows(self, uniform: np.ndarray, held_out: bool) -> Examples:
        tokens = np.empty((len(uniform), self.length + 1), np.uint16)
        state = np.searchsorted(self._start_ends, uniform[:, 0], side="right")
        for t in range(self.length + 1):
            place = np.minimum(state + uniform[:, t + 1], np.nextafter(state + 1.0, 0))
            outcome = np.searchsorted(self._ends, place, side="right")
            outcome -= state * self.edges[:, 0].size
            tokens[:, t], state = np.divmod(outcome, len(self.start))
        nats, laws = self._filter(tokens)
        return Examples(tokens, nats, laws, None)

    def _filter(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tokens [R, T + 1] -> -log probability of each target [R, T], and the latents [R, T, K]."""
        rows, length = len(tokens), self.length
        nats = np.empty((rows, length), np.float32)
        laws = np.empty((rows, length, len(self.start)), np.float32)
        law = np.tile(self.start, (rows, 1))
        for t in range(length + 1):
            joint = np.empty_like(law)
            for symbol, edges in enumerate(self.edges):
                read = tokens[:, t] == symbol
                joint[read] = law[read] @ edges
            seen = joint.sum(1)
            law = joint / seen[:, None]
            if t > 0:
                nats[:, t - 1] = -np.log(seen)
            if t < length:
                laws[:, t] = law
        return nats, laws


class HiddenMarkov(EdgeEmitting):
    """A random chain that mostly follows a fixed permutation of its states.

    Transitions A = sticky P + (1 - sticky) D, where P is a permutation and each row of D is from a symmetric
    Dirichlet law, as is each row of the emissions O.

    Args:
        states: K. symbols: V. length: T. seed: of the chain.
        sticky: share of P. mixing, emission: concentrations of the Dirichlet laws of D and O; the smaller,
            the fewer states follow a state, and the fewer symbols it emits.
    """

    @checked
    def __init__(
        self,
        *,
        states: Size = 8,
        symbols: Size = 16,
        length: Length = 64,
        seed: Seed = 0,
        sticky: Decay = 0.85,
        mixing: Positive = 0.25,
        emission: Positive = 0.12,
    ) -> None:
        rng = np.random.default_rng(seed)
        chain = sticky * np.eye(states)[rng.permutation(states)]
        chain += (1 - sticky) * rng.dirichlet(np.full(states, mixing), states)
        emissions = rng.dirichlet(np.full(symbols, emission), states)  # [K, V]
        edges = np.einsum("ix,ij->xij", emissions, chain)
        super().__init__(edges, [str(symbol) for symbol in range(symbols)], length)


class Mess3(EdgeEmitting):
    """Mess3 (2405.15943): three states that persist, each entered with its own symbol most of the time.

    The laws of the state form a fractal in the triangle, and no closed form of the floor is known.

    Args:
        x: probability of a move to each other state. a: probability of a state's own symbol. length: T.
    """

    @checked
    def __init__(
        self,
        *,
        x: Annotated[float, Range(above=0, most=0.5)] = 0.15,
        a: Share = 0.6,
        length: Length = 64,
    ) -> None:
        chain = np.where(np.eye(3) == 1, 1 - 2 * x, x)
        entered = np.where(np.eye(3) == 1, a, (1 - a) / 2)  # [state entered, symbol]
        super().__init__(np.einsum("ij,jx->xij", chain, entered), ["A", "B", "C"], length)


class RRXOR(EdgeEmitting):
    """RRXOR (2405.15943): two random bits, then their exclusive or, and again from the start.

    A row starts at any of the three phases, and the tokens tell which only by and by. `floor` is the entropy
    rate, (H(p) + H(q)) / 3 nats: what the loss of late targets approaches, and a lower bound of the mean
    over a row.

    Args:
        p, q: probability that the first bit, and the second, is 0. length: T.
    """

    @checked
    def __init__(self, *, p: Share = 0.5, q: Share = 0.5, length: Length = 64) -> None:
        start, first, result = 0, (1, 2), (3, 4)
        edges = np.zeros((2, 5, 5))
        for bit, chance in enumerate((p, 1 - p)):
            edges[bit, start, first[bit]] = chance
            for second, chance_of_second in enumerate((q, 1 - q)):
                edges[second, first[bit], result[bit ^ second]] = chance_of_second
            edges[bit, result[bit], start] = 1
        super().__init__(edges, ["0", "1"], length)
        self.floor = float(entr([p, 1 - p, q, 1 - q]).sum()) / 3
