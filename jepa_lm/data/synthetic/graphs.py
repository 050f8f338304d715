"""Random directed graphs, and the shortest ways through them.

A graph is its edges [N, N] bool: entry i, j tells whether an edge leads from i to j. A way is a tuple of
nodes. A set of nodes is the bits of a whole number, which makes the search of a small graph fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import Delaunay

Way = tuple[int, ...]


def random_graph(rng: np.random.Generator, nodes: int, density: float) -> np.ndarray:
    """Return a directed Erdos-Renyi graph: each edge is there with probability `density`."""
    return (rng.random((nodes, nodes)) < density) & ~np.eye(nodes, dtype=bool)


def street_graph(rng: np.random.Generator, nodes: int, density: float) -> np.ndarray:
    """Return streets between random points of a square, numbered from left to right, both ways open.

    The streets are the minimum spanning tree of the points' Delaunay triangulation, and a share `density` of
    its other edges.
    """
    points = rng.random((nodes, 2))
    points = points[np.argsort(points[:, 0])]
    corners = Delaunay(points).simplices
    ends = np.unique(np.sort(corners[:, [[0, 1], [1, 2], [0, 2]]].reshape(-1, 2), axis=1), axis=0)
    lengths = np.linalg.norm(points[ends[:, 0]] - points[ends[:, 1]], axis=1)
    edges = minimum_spanning_tree(coo_array((lengths, ends.T), (nodes, nodes))).toarray() > 0
    others = ends[~edges[ends[:, 0], ends[:, 1]]]
    added = rng.permutation(others)[: int(density * len(others))]
    edges[added[:, 0], added[:, 1]] = True
    return edges | edges.T


class Routes:
    """Shortest ways through a graph, by number of steps; of equally short ones, the first in order.

    Args:
        edges: [N, N] bool.
    """

    def __init__(self, edges: np.ndarray) -> None:
        self.after = [bits(np.flatnonzero(row)) for row in edges]
        self.before = [bits(np.flatnonzero(column)) for column in edges.T]

    def shortest(self, first: int, goal: int, closed: int = 0) -> Way | None:
        """Return the shortest way from any node of the set `first` to a goal, None if there is none.

        Args:
            closed: set of the nodes that the way may not enter, the goal not among them.
        """
        layers, open_nodes = [1 << goal], ~(closed | 1 << goal)
        while not layers[-1] & first:
            layer = 0
            for node in members(layers[-1]):
                layer |= self.before[node]
            layer &= open_nodes
            if not layer:
                return None
            open_nodes &= ~layer
            layers.append(layer)
        way: list[int] = []
        for layer in reversed(layers):
            way.append(next(members(layer & first)))
            first = self.after[way[-1]]
        return tuple(way)

    def several_shortest(self, source: int, goal: int, most: int) -> list[Way]:
        """Return the shortest ways that enter no node twice, up to `most` (Yen and Lawler's algorithm)."""
        found: list[Way] = []
        start = self.shortest(self.after[source], goal, 1 << source)
        waiting = {} if start is None else {(source, *start): 1}
        while waiting:
            way = min(waiting, key=lambda nodes: (len(nodes), nodes))
            parted = waiting.pop(
                way
            )  # before this place the branches of an earlier way are its own
            found.append(way)
            if len(found) == most:
                break
            for kept in range(parted, len(way)):
                head = way[:kept]
                taken = bits(other[kept] for other in found if other[:kept] == head)
                tail = self.shortest(self.after[head[-1]] & ~taken, goal, bits(head))
                if tail is not None:
                    waiting[head + tail] = kept
        return found


def bits(nodes: Iterable[int]) -> int:
    """Return a set of nodes as a whole number."""
    return sum(1 << node for node in {int(node) for node in nodes})


def members(nodes: int) -> Iterator[int]:
    """Yield the nodes of a set, in order."""
    while nodes:
        lowest = nodes & -nodes
        yield lowest.bit_length() - 1
        nodes ^= lowest
