"""Path-star graphs: the layout by hand, and every row a star whose answer is the arm of the goal."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chisquare

from jepa_lm.data.synthetic.path_star import PathStar
from jepa_lm.utils.errors import UserError


def parts(star: PathStar, tokens: np.ndarray) -> tuple[set[tuple[str, str]], str, str, list[str]]:
    """Read a printed row: its edges, source, goal and answer."""
    text = " ".join(star.names[token] for token in tokens)
    listed, _, asked = text.partition(" / ")
    question, _, answer = asked.partition(" = ")
    edges = [tuple(edge.split(" ")) for edge in listed.split(" | ")]
    assert len(edges) == len(set(edges)) == star.edges
    *path, end = answer.split(" ")
    assert end == "<eos>"
    return set(edges), *question.split(" "), path


def test_a_row_by_hand():
    star = PathStar(degree=2, path_length=3, nodes=5)
    # The five smallest of the first numbers name the nodes 3, 0, 4, 1, 2: source 3, arms 0 4 and 1 2; the
    # edges are 3 0, 0 4, 3 1, 1 2, and the last numbers put them in the order 2, 0, 3, 1.
    uniform = np.array([[0.2, 0.4, 0.5, 0.1, 0.3, 0.2, 0.4, 0.1, 0.3]])
    rows = star._rows(uniform, False)
    printed = " ".join(star.names[token] for token in rows.tokens[0])
    assert printed == "3 1 | 3 0 | 1 2 | 0 4 / 3 4 = 3 0 4 <eos>"
    assert rows.tokens[0].tolist() == [3, 1, 5, 3, 0, 5, 1, 2, 5, 0, 4, 7, 3, 4, 6, 3, 0, 4, 9]
    targets = rows.tokens[0, 1:][rows.answer[0]]
    assert targets.tolist() == [3, 0, 4]
    back = PathStar(degree=2, path_length=3, nodes=5, reverse=True)._rows(uniform, False)
    assert back.tokens[0, -4:].tolist() == [4, 0, 3, 9]


def test_the_published_length():
    star = PathStar(degree=5, path_length=5, nodes=50)
    assert (star.length + 1, star.prompt_length, star.branch) == (68 + 1, 63, 64)
    assert star.vocab_size == len(star.names) == 55
    for degree, path_length in ((2, 3), (2, 10), (7, 7)):
        star = PathStar(degree=degree, path_length=path_length)
        text = 3 * degree * (path_length - 1) - 1 + 4 + path_length
        assert star.sample(1, [0]).tokens.shape == (1, text + 1)


@pytest.mark.parametrize("reverse", [False, True])
def test_every_row_is_a_star_whose_answer_leads_to_the_goal(reverse):
    star = PathStar(degree=3, path_length=4, nodes=12, reverse=reverse)
    rows = star.sample(300, [1])
    assert rows.nats is rows.latents is None
    for tokens, answer in zip(rows.tokens, rows.answer, strict=True):
        edges, source, goal, path = parts(star, tokens)
        path = path[::-1] if reverse else path
        assert (path[0], path[-1], len(path)) == (source, goal, 4)
        assert set(pairwise(path)) <= edges
        starts, ends = [a for a, _ in edges], [b for _, b in edges]
        assert starts.count(source) == 3
        assert source not in ends
        assert len(set(ends)) == len(ends)
        assert max(starts.count(node) for node in ends) == 1
        assert tokens[star.branch] == int(path[1])
        assert [star.names[t] for t in tokens[1:][answer]] == (path[::-1] if reverse else path)


def test_nodes_edges_and_arms_are_in_random_order():
    star = PathStar(degree=2, path_length=3, nodes=6)
    rows = star.sample(30_000, [2]).tokens.astype(int)
    for place in (12, 13, star.branch):  # source, goal, branch
        assert chisquare(np.bincount(rows[:, place], minlength=6)).pvalue > 1e-3
    first = [(rows[:, [3 * i, 3 * i + 1]] == rows[:, [15, 16]]).all(1).sum() for i in range(4)]
    assert chisquare(first).pvalue > 1e-3
    assert len(np.unique(rows[:, [12, 13]], axis=0)) == 30


def test_floors():
    assert PathStar(degree=5, path_length=5).floor == 0
    assert PathStar(degree=5, path_length=4).floor_without_planning == pytest.approx(
        math.log(5) / 4
    )
    assert PathStar(reverse=True).floor_without_planning == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_solved_is_the_path_and_nothing_else(reverse):
    star = PathStar(degree=3, path_length=4, nodes=50, reverse=reverse)
    tokens = star.sample(200, [3]).tokens
    prompts, answers = tokens[:, : star.prompt_length], tokens[:, star.prompt_length :]
    assert star.solved(prompts, answers).all()
    assert star.solved(prompts, answers[:, : star.answer_length]).all()
    assert not star.solved(prompts, np.roll(answers, 1, axis=0)).any()
    for place in range(star.answer_length):
        wrong = answers.copy()
        wrong[::2, place] = star.vocab_size - 1
        assert star.solved(prompts, wrong).tolist() == [False, True] * 100


@pytest.mark.parametrize("reverse", [True, False])
def test_the_branch_is_judged_alone(reverse):
    star = PathStar(degree=3, path_length=4, nodes=12, reverse=reverse)
    tokens = star.sample(6, (0,)).tokens.astype(int)
    answers, place = tokens[:, star.prompt_length :][:, :4].copy(), 2 if reverse else 1
    answers[::2, place] = (answers[::2, place] + 1) % 12  # the wrong arm
    answers[1, 3 - place] = (answers[1, 3 - place] + 1) % 12  # the right one, and lost after it
    found = star.judge(tokens, np.full(6, star.prompt_length), answers)
    assert found["branch_accuracy"].tolist() == [False, True] * 3
    assert found["solved"].tolist() == [False, False, False, True, False, True]


@pytest.mark.parametrize("reverse", [True, False])
def test_the_arm_is_to_be_told_from_all_others(reverse):
    star = PathStar(degree=4, path_length=3, nodes=20, reverse=reverse)
    rows = star.sample(50, (0,)).tokens.astype(int)
    place, others = star.planned(rows)
    for row, found in zip(rows, others, strict=True):
        listed, _, asked = " ".join(star.names[i] for i in row).partition(" / ")
        source = asked.split()[0]
        edges = [edge.split() for edge in listed.split(" | ")]
        arms = {int(end) for start, end in edges if start == source}
        assert row[place] in arms
        assert sorted(found) == sorted(arms - {row[place]})
        assert len(found) == 3


def test_a_seed_gives_the_same_bytes_and_a_longer_sample_begins_with_a_shorter_one():
    star = PathStar()
    one, again, other = (star.sample(20, seed).tokens for seed in ([4], [4], [5]))
    assert one.tobytes() == again.tobytes()
    assert (one != other).any()
    assert (star.sample(60, [4]).tokens[:20] == one).all()
    assert len(np.unique(one, axis=0)) == 20


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"degree": 1}, "degree=1: expected a whole number from 2 to 1024"),
        ({"path_length": 2}, "path_length=2: expected a whole number from 3 to 1024"),
        ({"nodes": 65532}, "nodes=65532: expected a whole number from 5 to 65531"),
        (
            {"nodes": 20},
            "nodes=20: expected at least 21, for 5 arms of 4 nodes and their source",
        ),
    ],
)
def test_mistakes_name_the_key(settings, line):
    with pytest.raises(UserError) as error:
        PathStar(**settings)
    assert str(error.value) == line
