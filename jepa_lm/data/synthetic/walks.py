"""Walks through a graph that no row shows (2604.06155): source, target, and the increments of node numbers.

    source target inc_5 inc_-2 ... <end> <pad> <pad>

All pairs of nodes with a way between them are divided once: one half is asked in training, the other when
`held_out`. Rows of a pair are its shortest ways; some pairs add a detour around a node, or a recovery after
a random first step. The ids are those of the published code. It holds out the shortest way of a pair alone;
here both halves follow one law, so that their losses compare.
Legend: R rows, T inputs, N nodes, V tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from jepa_lm.data.synthetic.examples import Examples, Generator, whole
from jepa_lm.data.synthetic.graphs import Routes, Way, bits, random_graph, street_graph
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Range, Seed, Share, checked

PAD, END, FIRST = 0, 1, 2
"""Ids of padding and of the end of a walk, and of the first node."""


class GraphWalks(Generator):
    """Walks through one graph, of which half of the questions are held out.

    Steps and the end of a walk are scored, and `nats` is 0 elsewhere. A model that knows the walks of every
    pair reaches the mean of `nats` over what is scored.

    Args:
        nodes: N. kind: `random`, an edge between any two nodes, or `street`, neighbours in the plane.
        density: probability of an edge of a random graph; of a street graph, share of the edges kept beyond
            those that connect it. None for 4 / N, and 0.3.
        ways: most shortest ways of a pair. detour, recovery: share of the pairs that add one.
        seed: of the graph, the division and the walks.

    Raises:
        UserError: a value is out of range, or hardly any node can be reached.
    """

    @checked
    def __init__(
        self,
        *,
        nodes: Annotated[int, Range(least=4, most=128)] = 30,
        kind: Literal["random", "street"] = "random",
        density: Share | None = None,
        ways: Annotated[int, Range(least=1, most=16)] = 3,
        detour: Share = 0.3,
        recovery: Share = 0.3,
        seed: Seed = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        if density is None:
            density = 0.3 if kind == "street" else 4 / nodes
        self.edges = (street_graph if kind == "street" else random_graph)(rng, nodes, density)
        """[N, N] bool, from rows to columns."""
        self.nodes = nodes
        walks = self._walks_of_pairs(rng, ways, detour, recovery)
        if len(walks) < 2:
            raise UserError(
                f"density={density}: connects {len(walks)} pairs of nodes; 2 are needed, so raise it"
            )
        increments = [step for step in range(1 - nodes, nodes) if step != 0]
        self.names = ["<pad>", "<end>", *map(str, range(nodes)), *(f"inc_{i}" for i in increments)]
        self.vocab_size, self.prompt_length, self.draws = len(self.names), 2, 1
        self.end = END
        self.answer_length = max(len(way) for found in walks.values() for way in found)
        self.length = self.answer_length + 1
        self._steps = np.array([*[0] * (FIRST + nodes), *increments])
        """[V], the increment of each token; 0 for others."""
        pairs, half = list(walks), len(walks) // 2
        rng.shuffle(pairs)
        self.pairs = {False: sorted(pairs[:half]), True: sorted(pairs[half:])}
        """Sources and targets asked in training, and when `held_out`."""
        self._known = {
            held_out: self._as_rows([walks[pair] for pair in asked])
            for held_out, asked in self.pairs.items()
        }

    def _walks_of_pairs(
        self, rng: np.random.Generator, ways: int, detour: float, recovery: float
    ) -> dict[tuple[int, int], list[Way]]:
        """Return the walks of each pair of nodes with a way between them."""
        walks, routes = {}, Routes(self.edges)
        for source, goal in np.argwhere(~np.eye(len(self.edges), dtype=bool)).tolist():
            found = routes.several_shortest(source, goal, ways)
            if not found:
                continue
            inner, steps = found[0][1:-1], np.flatnonzero(self.edges[source])
            others = []
            if rng.random() < detour and len(inner) > 1:
                closed = bits((source, inner[rng.integers(len(inner))]))
                others.append(routes.shortest(routes.after[source], goal, closed))
            if rng.random() < recovery and len(steps) > 1:
                others.append(routes.shortest(1 << int(rng.choice(steps)), goal))
            walks[source, goal] = found + [(source, *way) for way in others if way is not None]
        return walks

    def _as_rows(self, walks: list[list[Way]]) -> Examples:
        """Return one row for each walk of each pair."""
        ways = [(way, found) for found in walks for way in found]
        shape = (len(ways), self.length)
        tokens, nats = (
            np.zeros((len(ways), self.length + 1), np.uint16),
            np.zeros(shape, np.float32),
        )
        answer, text = np.zeros(shape, bool), np.zeros(shape, bool)
        ids = {int(step): token for token, step in enumerate(self._steps)}
        for row, (way, found) in enumerate(ways):
            end = len(way) + 1  # place of <end>: after two nodes come the steps
            tokens[row, :2] = way[0] + FIRST, way[-1] + FIRST
            tokens[row, 2:end] = [ids[step] for step in np.diff(way).tolist()]
            tokens[row, end] = END
            answer[row, 1:end] = text[row, :end] = True
            # A walk ends where it first meets its target, so no walk of a pair begins with another.
            alike = [sum(other[:n] == way[:n] for other in found) for n in range(1, len(way) + 1)]
            nats[row, 1 : end - 1] = -np.diff(np.log(alike))
        return Examples(tokens, nats, None, answer, whole=text)

    def _rows(self, uniform: np.ndarray, held_out: bool) -> Examples:
        tokens, *others = self._known[held_out]
        drawn = whole(uniform[:, 0], len(tokens))
        return Examples(tokens[drawn], *(None if part is None else part[drawn] for part in others))

    def solved(self, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Return which answers [R, A] follow edges from the source to the target of prompts [R, 2], [R] bool.

        As published, an answer ends where it first meets the target.
        """
        at, goal = prompts.astype(int).T - FIRST
        legal, met = np.ones(len(at), bool), np.zeros(len(at), bool)
        for step in self._steps[answers].T:
            to = at + step
            inside = (to >= 0) & (to < self.nodes)
            # No edge leads from a node to itself, so a token that is no increment is no step.
            legal &= inside & self.edges[at, np.where(inside, to, at)]
            at = np.where(legal, to, at)
            met |= legal & (at == goal)
        return met
