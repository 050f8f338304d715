"""Graph walks: every row is a legal walk, the halves share no question, and the ways are the shortest."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.stats import chisquare

from jepa_lm.data.synthetic.graphs import Routes, bits, random_graph, street_graph
from jepa_lm.data.synthetic.walks import GraphWalks
from jepa_lm.utils.errors import UserError


@pytest.fixture(scope="module", params=["random", "street"])
def walks(request):
    return GraphWalks(nodes=16, kind=request.param, seed=2)


def simple_ways(edges: np.ndarray, way: tuple[int, ...], goal: int) -> list[tuple[int, ...]]:
    """Return every way that goes on from one to a goal and enters no node twice."""
    if way[-1] == goal:
        return [way]
    steps = [int(node) for node in np.flatnonzero(edges[way[-1]]) if node not in way]
    return [whole for node in steps for whole in simple_ways(edges, (*way, node), goal)]


def way_of(model: GraphWalks, tokens: np.ndarray) -> tuple[int, ...]:
    """Read a printed row: its nodes, after checking that it ends at its target, with padding only."""
    printed = " ".join(model.names[token] for token in tokens)
    said, _, padding = printed.partition(" <end>")
    source, target, *steps = said.split(" ")
    assert set(padding.split()) <= {"<pad>"}
    way = [int(source)]
    for step in steps:
        way.append(way[-1] + int(step.removeprefix("inc_")))
    assert way[-1] == int(target)
    return tuple(way)


@pytest.mark.parametrize("seed", range(4))
def test_the_shortest_ways_are_those_of_an_enumeration(seed):
    rng = np.random.default_rng(seed)
    edges = random_graph(rng, 7, 0.3)
    routes = Routes(edges)
    for source, goal in np.argwhere(~np.eye(7, dtype=bool)).tolist():
        every = sorted(simple_ways(edges, (source,), goal), key=len)
        for most in (1, 3, 1000):
            found = routes.several_shortest(source, goal, most)
            assert [len(way) for way in found] == [len(way) for way in every[:most]]
            assert len(set(found)) == len(found)
            assert set(found) <= set(every)
        for closed in set(range(7)) - {source, goal}:
            around = [len(way) for way in every if closed not in way]
            way = routes.shortest(routes.after[source], goal, bits((source, closed)))
            assert (way and len(way) + 1) == min(around, default=None)


def test_a_random_graph_has_its_share_of_edges_and_streets_connect_all_points():
    edges = random_graph(np.random.default_rng(3), 100, 0.04)
    assert not edges.diagonal().any()
    assert edges.sum() == pytest.approx(396, abs=80)
    sizes = [
        street_graph(np.random.default_rng(3), 40, density).sum() // 2 for density in (0, 0.3, 1)
    ]
    assert sizes[0] == 39
    assert sizes[1] == 39 + int(0.3 * (sizes[2] - 39))
    assert sizes[2] <= 3 * 40 - 6  # planar
    for seed in range(5):
        streets = street_graph(np.random.default_rng(seed), 40, 0)
        assert (streets == streets.T).all()
        assert connected_components(streets)[0] == 1


def test_every_walk_is_legal_and_asked_in_its_half_only(walks):
    asked = {}
    for held_out in (False, True):
        rows = walks.sample(600, [1], held_out=held_out)
        ways = [way_of(walks, tokens) for tokens in rows.tokens]
        assert all(walks.edges[step] for way in ways for step in pairwise(way))
        asked[held_out] = {(way[0], way[-1]) for way in ways}
        assert asked[held_out] <= set(walks.pairs[held_out])
        for way, answer in zip(ways, rows.answer, strict=True):
            assert np.flatnonzero(answer).tolist() == list(range(1, len(way) + 1))
    assert not asked[False] & asked[True]
    reachable = np.isfinite(shortest_path(walks.edges, unweighted=True)) & ~np.eye(16, dtype=bool)
    assert not set(walks.pairs[False]) & set(walks.pairs[True])
    assert {*walks.pairs[False], *walks.pairs[True]} == set(
        map(tuple, np.argwhere(reachable).tolist())
    )
    assert abs(len(walks.pairs[False]) - len(walks.pairs[True])) <= 1


def test_a_row_is_whole_up_to_the_end_of_its_walk(walks):
    drawn = walks.sample(50, (0,))
    assert np.array_equal(drawn.whole, drawn.tokens[:, 1:] != 0)


def test_nats_are_the_frequencies_of_rows_and_walks_are_equally_likely(walks):
    rows = walks.sample(40_000, [2])
    ways = [way_of(walks, tokens) for tokens in rows.tokens]
    counts, prefixes = Counter(ways), Counter()
    for way in ways:
        prefixes.update((way[-1], way[:n]) for n in range(1, len(way) + 1))
    for row in range(300):
        way = ways[row]
        if counts[way] < 30:
            continue
        for n in range(1, len(way)):
            share = prefixes[way[-1], way[: n + 1]] / prefixes[way[-1], way[:n]]
            deviation = math.sqrt(share * (1 - share) / prefixes[way[-1], way[:n]])
            assert math.exp(-rows.nats[row, n]) == pytest.approx(share, abs=5 * deviation + 1e-6)
        assert (np.delete(rows.nats[row], range(1, len(way))) == 0).all()
    lines = walks._known[False].tokens
    repeats = Counter(map(bytes, lines))
    drawn = Counter(map(bytes, rows.tokens))
    expected = [40_000 * n / len(lines) for n in repeats.values()]
    assert chisquare([drawn[line] for line in repeats], expected).pvalue > 1e-3


def test_detours_and_recoveries_are_added_to_a_share_of_the_pairs():
    def extra(**settings):
        model = GraphWalks(nodes=25, seed=4, **settings)
        lines = [way_of(model, tokens) for half in model._known.values() for tokens in half.tokens]
        return len(lines) / len({(way[0], way[-1]) for way in lines}), lines

    plain, lines = extra(ways=1, detour=0, recovery=0)
    shortest = {(way[0], way[-1]): way for way in lines}
    assert plain == 1
    both, lines = extra(ways=1, detour=0, recovery=1)
    assert 1.5 < both <= 2
    begun_anywhere = [way for way in lines if len(way) > len(shortest[way[0], way[-1]])]
    assert any(len(set(way)) < len(way) for way in begun_anywhere)  # back through the source
    some, _ = extra(ways=1, detour=0, recovery=0.3)
    assert some - 1 == pytest.approx(0.3 * (both - 1), abs=0.08)
    _, lines = extra(ways=1, detour=1, recovery=0)
    detours = [way for way in lines if way != shortest[way[0], way[-1]]]
    assert len(detours) > 50
    for way in detours:
        assert not set(shortest[way[0], way[-1]]) <= set(way)


def test_solved_is_a_legal_walk_to_the_target(walks):
    rows = walks.sample(400, [3], held_out=True)
    prompts, answers = rows.tokens[:, :2], rows.tokens[:, 2:]
    assert answers.shape[1] == walks.answer_length
    assert walks.solved(prompts, answers).all()
    after = answers.copy()
    after[answers == 1] = walks.vocab_size - 1  # what follows the target is not read
    assert walks.solved(prompts, after).all()
    late = np.roll(answers, 1, axis=1)
    late[:, 0] = 1  # the answer ends before its first step
    assert not walks.solved(prompts, late).any()
    half = rows.answer.sum(1) > 2
    cut = answers[half]
    cut[np.arange(len(cut)), rows.answer[half].sum(1) - 2] = 1  # the last step is missing
    assert half.sum() > 50
    assert not walks.solved(prompts[half], cut).any()
    jump = answers.copy()
    sources, targets = prompts.astype(int).T - 2
    names = {name: token for token, name in enumerate(walks.names)}
    jump[:, 0] = [names[f"inc_{step}"] for step in targets - sources]
    assert (walks.solved(prompts, jump) == walks.edges[sources, targets]).all()
    for outside in ("inc_15", "inc_-15"):
        wrong = answers.copy()
        wrong[:, 0] = names[outside]
        assert not walks.solved(prompts, wrong)[~walks.edges[sources, (sources + 15) % 16]].any()


def test_a_seed_gives_the_same_bytes_and_a_longer_sample_begins_with_a_shorter_one(walks):
    one, again, other = (walks.sample(30, seed).tokens for seed in ([5], [5], [6]))
    assert one.tobytes() == again.tobytes()
    assert (one != other).any()
    assert (walks.sample(90, [5]).tokens[:30] == one).all()
    first, twin, another = (GraphWalks(nodes=10, seed=seed) for seed in (0, 0, 1))
    assert first.sample(9, [1]).tokens.tobytes() == twin.sample(9, [1]).tokens.tobytes()
    assert (first.edges != another.edges).any()


def test_names_and_sizes(walks):
    assert walks.vocab_size == len(walks.names) == 3 * 16
    assert walks.names[:3] + walks.names[17:19] + walks.names[-1:] == [
        *("<pad>", "<end>", "0", "15", "inc_-15", "inc_15"),
    ]
    assert walks.sample(2, [0]).tokens.shape == (2, walks.length + 1)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"nodes": 3}, "nodes=3: expected a whole number from 4 to 128"),
        ({"kind": "grid"}, "kind=grid: expected one of random, street"),
        ({"density": 2}, "density=2: expected a number from 0 to 1 or null"),
        ({"density": 0}, "density=0: connects 0 pairs of nodes; 2 are needed, so raise it"),
        ({"ways": 0}, "ways=0: expected a whole number from 1 to 16"),
        ({"detour": -1}, "detour=-1: expected a number from 0 to 1"),
    ],
)
def test_mistakes_name_the_key(settings, line):
    with pytest.raises(UserError) as error:
        GraphWalks(**settings)
    assert str(error.value) == line
