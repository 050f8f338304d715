"""Path-star graphs (2403.06963): find the arm that leads from the centre of a star to the goal.

    a b | c d | ... / source goal = n0 n1 .. n(l-1) <eos>

From the source start d arms of l - 1 nodes each, and the goal ends one of them. A prompt lists all edges in
random order, then the source and the goal; the answer is the path between them. Only its second node has to
be planned: each other one is the only successor of the one before. The ids are those of the published code,
and its padding, which no row needs, keeps its place.
Legend: R rows, N node names, d arms, l nodes of a path, E = d (l - 1) edges.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np

from jepa_lm.data.synthetic.examples import Examples, Generator
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Range, checked


class PathStar(Generator):
    """Path-star graphs G(d, l), each row another graph.

    The nodes of the answer are what is scored. A model that plans reaches `floor`, 0 nats, and one that only
    follows edges `floor_without_planning`.

    Args:
        degree: d. path_length: l. nodes: N, of which each row takes 1 + d (l - 1) at random.
        reverse: write the answer from the goal to the source, so that nothing has to be planned.

    Raises:
        UserError: a value is out of range, or there are too few nodes.
    """

    floor = 0.0
    rule_names = ("solved", "branch_accuracy")
    margin_name = "branch_margin"
    prompt_length: int
    answer_length: int

    @checked
    def __init__(
        self,
        *,
        degree: Annotated[int, Range(least=2, most=1024)] = 5,
        path_length: Annotated[int, Range(least=3, most=1024)] = 5,
        nodes: Annotated[int, Range(least=5, most=(1 << 16) - 5)] = 50,
        reverse: bool = False,
    ) -> None:
        self.edges = degree * (path_length - 1)
        if nodes <= self.edges:
            raise UserError(
                f"nodes={nodes}: expected at least {self.edges + 1}, for {degree} arms of "
                f"{path_length - 1} nodes and their source"
            )
        self.degree, self.path_length, self.nodes, self.reverse = (
            degree,
            path_length,
            nodes,
            reverse,
        )
        self.names = [*map(str, range(nodes)), "|", "=", "/", "<pad>", "<eos>"]
        self.vocab_size = len(self.names)
        self.prompt_length, self.answer_length = 3 * self.edges + 3, path_length
        self.length = self.prompt_length + path_length  # <eos> is a target and no input
        self.branch = self.prompt_length + (path_length - 2 if reverse else 1)
        """Place in `tokens` of the first node of the arm; its target is one place earlier."""
        self.floor_without_planning = 0.0 if reverse else math.log(degree) / path_length
        """Nats per node of the answer if the arm is guessed and the rest is right."""
        self.draws = nodes + self.edges
        self.scratch = 4 * self.draws

    def _rows(self, uniform: np.ndarray, held_out: bool) -> Examples:
        rows, (bar, equals, slash, _, end) = len(uniform), range(self.nodes, self.nodes + 5)
        chosen = uniform[:, : self.nodes].argsort(1)[:, : 1 + self.edges]  # [R, 1 + E]
        arms = chosen[:, 1:].reshape(rows, self.degree, -1)  # [R, d, l - 1]
        source = np.broadcast_to(chosen[:, :1, None], (rows, self.degree, 1))
        paths = np.concatenate((source, arms), axis=2)  # [R, d, l]; the first is the answer
        edges = np.stack((paths[..., :-1], paths[..., 1:]), axis=-1).reshape(rows, self.edges, 2)
        order = uniform[:, self.nodes :].argsort(1)  # [R, E]
        listed = np.full((rows, self.edges, 3), bar)
        listed[..., :2] = np.take_along_axis(edges, order[..., None], axis=1)
        path = paths[:, 0]
        parts = (
            *(listed.reshape(rows, -1)[:, :-1], np.full((rows, 1), slash)),
            *(path[:, :1], path[:, -1:], np.full((rows, 1), equals)),
            *(path[:, ::-1] if self.reverse else path, np.full((rows, 1), end)),
        )
        tokens = np.concatenate(parts, axis=1).astype(np.uint16)
        answer = np.zeros((rows, self.length), bool)
        answer[:, self.prompt_length - 1 : -1] = True
        return Examples(tokens, None, None, answer)

    def judge(
        self, rows: np.ndarray, starts: np.ndarray, answers: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Questions.judge`; `branch_accuracy` is of the one node of an answer that has to be planned."""
        found = answers[:, self.branch - self.prompt_length] == rows[:, self.branch]
        return {**super().judge(rows, starts, answers), "branch_accuracy": found}

    def planned(self, rows: np.ndarray) -> tuple[int, np.ndarray]:
        """See `jepa_lm.data.questions.Planned`: the first node of the arm, among those of all arms."""
        edges = rows[:, : 3 * self.edges].reshape(len(rows), self.edges, 3)
        source, first = rows[:, 3 * self.edges, None], rows[:, self.branch, None]
        others = (edges[..., 0] == source) & (edges[..., 1] != first)
        return self.branch, edges[..., 1][others].reshape(len(rows), self.degree - 1)

    def solved(self, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Return which answers [R, l] are the path that a prompt [R, 3E + 3] asks for, [R] bool."""
        rows = np.arange(len(prompts))
        listed = prompts[:, : 3 * self.edges].reshape(len(prompts), self.edges, 3).astype(int)
        before = np.zeros((len(prompts), self.nodes), int)
        before[rows[:, None], listed[..., 1]] = listed[..., 0]
        path = [prompts[:, 3 * self.edges + 1].astype(int)]
        for _ in range(self.path_length - 1):
            path.append(before[rows, path[-1]])
        right = np.stack(path if self.reverse else path[::-1], axis=1)
        return (answers[:, np.arange(self.path_length)] == right).all(1)
