"""Random Hierarchy Model (2307.02129): rows are the leaves of trees that a random grammar grows.

Each of the v symbols of a level has m rules, tuples of s symbols of the level below, and no two symbols share
a tuple. So leaves that complete a subtree tell its root, and the law of what follows is exact and cheap.
Level 0 is the root, level L the leaves.
Legend: R rows, T inputs, v symbols, m rules, s branching, L levels, n nodes of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from scipy.special import entr

from jepa_lm.data.questions import Labels
from jepa_lm.data.synthetic.examples import MOST_SCRATCH, Examples, Generator, whole
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Range, Seed, Whole, checked

MOST_TUPLES = 1 << 24
MOST_LEAVES = 1 << 14


class RandomHierarchy(Generator):
    """Leaves of random trees; a row is s^L tokens, so T = s^L - 1.

    `latents` is the law of the symbol above each target at a level, given the inputs so far: of the root, of
    an inner node, or with `latent_level` = L of the target itself. `floor` is exact.

    Args:
        symbols: v, also the number of classes. rules: m. branching: s. levels: L.
        latent_level: level of the symbol that the latents tell. seed: of the grammar.

    Raises:
        UserError: a value is out of range, or the grammar would have too many tuples or leaves.
    """

    floor: float
    latent_dim: int

    @checked
    def __init__(
        self,
        *,
        symbols: Annotated[int, Range(least=2, most=256)] = 16,
        rules: Count = 4,
        branching: Annotated[int, Range(least=2, most=16)] = 2,
        levels: Annotated[int, Range(least=1, most=14)] = 4,
        latent_level: Whole = 0,
        seed: Seed = 0,
    ) -> None:
        leaves, tuples = branching**levels, symbols**branching
        self._check(tuples, leaves, symbols, rules, levels, latent_level)
        self.levels, self.branching, self.latent_level = levels, branching, latent_level
        self.vocab_size = self.latent_dim = symbols
        self.length, self.names = leaves - 1, [str(symbol) for symbol in range(symbols)]
        self.label_names = ("root", *(f"level_{level}" for level in range(1, levels)))
        rng = np.random.default_rng(seed)
        places = symbols ** np.arange(branching)[::-1]
        drawn = (rng.choice(tuples, symbols * rules, replace=False) for _ in range(levels))
        self.rules = np.stack([code[:, None] // places % symbols for code in drawn])
        """[L, v m, s]: row a m + i is rule i of symbol a."""
        self.multiplicity = rules
        nodes = (leaves - 1) // (branching - 1)
        self.draws = 1 + nodes
        self.scratch = 4 * leaves * symbols * rules
        first = np.full(symbols, 1 / symbols)
        for below in self.rules:
            first = np.bincount(below[:, 0], np.repeat(first, rules) / rules, symbols)
        whole_tree = math.log(symbols) + nodes * math.log(rules)  # leaves tell all of their tree
        self.floor = float(whole_tree - entr(first).sum()) / self.length

    @staticmethod
    def _check(
        tuples: int, leaves: int, symbols: int, rules: int, levels: int, latent_level: int
    ) -> None:
        if tuples > MOST_TUPLES:
            raise UserError(
                f"symbols={symbols}: expected at most {MOST_TUPLES} tuples of its symbols, and this "
                f"branching makes {tuples}"
            )
        if rules * symbols > tuples:
            raise UserError(
                f"rules={rules}: expected at most {tuples // symbols}, so that no two symbols share one "
                f"of the {tuples} tuples"
            )
        if leaves > MOST_LEAVES or leaves * symbols * rules > MOST_SCRATCH:
            raise UserError(
                f"levels={levels}: expected at most {MOST_LEAVES} leaves, and {MOST_SCRATCH} for "
                f"leaves x symbols x rules = {leaves} x {symbols} x {rules}"
            )
        if latent_level > levels:
            raise UserError(f"latent_level={latent_level}: expected at most levels={levels}")

    def labels(self, rows: int, seed: Sequence[int]) -> dict[str, Labels]:
        """Return the symbols of each level above the leaves of the rows that `sample` returns.

        Returns:
            `root` and `level_k`, [R, s^k] each: symbol i of level k is above the s^(L-k) leaves from place
            i s^(L-k) on. It is asked at the last of these leaves that is an input; the last leaf of a row
            is none.
        """
        trees = [self._trees(uniform)[:-1] for uniform in self._uniform(rows, seed)]
        found = {}
        for name, parts in zip(self.label_names, zip(*trees, strict=True), strict=True):
            values = np.concatenate(parts).astype(np.int64)
            ends = np.arange(1, 1 + values.shape[1]) * ((self.length + 1) // values.shape[1]) - 1
            found[name] = Labels(values, np.minimum(ends, self.length - 1))
        return found

    def _trees(self, uniform: np.ndarray) -> list[np.ndarray]:
        """Return the symbols of every level, [R, s^k] each."""
        tree, used = [whole(uniform[:, :1], self.vocab_size)], 1
        for rules in self.rules:
            parents = tree[-1]
            chosen = whole(uniform[:, used : used + parents.shape[1]], self.multiplicity)
            tree.append(rules[parents * self.multiplicity + chosen].reshape(len(uniform), -1))
            used += parents.shape[1]
        return tree

    def _rows(self, uniform: np.ndarray, held_out: bool) -> Examples:
        tree = self._trees(uniform)
        laws = self._laws_of_nodes(tree)
        leaves = tree[-1]
        probability = np.take_along_axis(laws[-1], leaves[..., None], axis=2)[:, 1:, 0]
        latents = self._laws_above_targets(tree, laws[self.latent_level])
        nats = -np.log(probability).astype(np.float32)
        return Examples(leaves.astype(np.uint16), nats, latents.astype(np.float32), None)

    def _laws_of_nodes(self, tree: list[np.ndarray]) -> list[np.ndarray]:
        """Return the law of each node's symbol, given all leaves before the first of its own, [R, n, v]."""
        rows, v = len(tree[0]), self.vocab_size
        laws = [np.full((rows, 1, v), 1 / v)]
        for rules, children in zip(self.rules, tree[1:], strict=True):
            children = children.reshape(rows, -1, self.branching)
            chance = np.repeat(laws[-1], self.multiplicity, axis=2)  # of each rule, [R, n, v m]
            below = np.empty((*children.shape, v))
            for i in range(self.branching):
                below[:, :, i] = chance @ np.eye(v)[rules[:, i]]
                chance = chance * (rules[:, i] == children[:, :, i, None])
            laws.append((below / below.sum(-1, keepdims=True)).reshape(rows, -1, v))
        return laws

    def _laws_above_targets(self, tree: list[np.ndarray], law: np.ndarray) -> np.ndarray:
        """Return the law of the symbol above each target, given the leaves before the target, [R, T, v].

        Args:
            law: of the nodes of that level, given the leaves before their own, [R, n, v].
        """
        rows, leaves = tree[-1].shape
        seen = np.ones((rows, leaves, self.vocab_size))  # chance of a node's leaves before a target
        for level in range(self.levels - 1, self.latent_level - 1, -1):
            rules, children = self.rules[level], tree[level + 1].reshape(rows, -1, self.branching)
            child = np.arange(leaves) // self.branching ** (self.levels - level - 1)
            node, place = np.divmod(child, self.branching)
            chance = np.empty((rows, leaves, len(rules)))
            for i in range(self.branching):
                at = place == i
                fits = rules[:, :i] == children[:, node[at], None, :i]  # [R, .., v m, i]
                chance[:, at] = seen[:, at][..., rules[:, i]] * fits.all(-1)
            seen = chance.reshape(*seen.shape, self.multiplicity).sum(-1)
            seen /= seen.sum(-1, keepdims=True)
        node = np.arange(leaves) // self.branching ** (self.levels - self.latent_level)
        joint = (law[:, node] * seen)[:, 1:]
        return joint / joint.sum(-1, keepdims=True)
