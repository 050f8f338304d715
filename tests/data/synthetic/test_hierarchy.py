"""Random hierarchy: no tuple is shared, and laws and floor are those of an enumeration of all trees."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from scipy.stats import chisquare

from jepa_lm.data.synthetic.hierarchy import RandomHierarchy
from jepa_lm.utils.errors import UserError

SMALL = {
    "pairs": dict(symbols=3, rules=2, branching=2, levels=3, seed=1),
    "triples": dict(symbols=2, rules=3, branching=3, levels=2, seed=2),
    "one level": dict(symbols=4, rules=2, branching=2, levels=1, seed=3),
}
EVERY = pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)


def all_trees(model: RandomHierarchy) -> list[list[tuple[int, ...]]]:
    """Return every tree of a grammar as its levels, the root first; all are equally likely."""
    trees = [[(root,)] for root in range(model.vocab_size)]
    for rules in model.rules.reshape(
        model.levels, model.vocab_size, model.multiplicity, -1
    ).tolist():
        trees = [
            [*tree, sum(map(tuple, chosen), ())]
            for tree in trees
            for chosen in product(*(rules[symbol] for symbol in tree[-1]))
        ]
    return trees


@EVERY
def test_no_tuple_is_shared_and_rows_tell_their_tree(settings):
    model = RandomHierarchy(**settings)
    for rules in model.rules:
        assert len(np.unique(rules, axis=0)) == len(rules) == model.vocab_size * model.multiplicity
        assert rules.min() >= 0
        assert rules.max() < model.vocab_size
    trees = all_trees(model)
    assert len({tree[-1] for tree in trees}) == len(trees)


@EVERY
def test_nats_latents_and_floor_are_those_of_all_trees(settings):
    trees = all_trees(RandomHierarchy(**settings))
    counts = Counter(tree[-1][:n] for tree in trees for n in range(len(tree[-1]) + 1))
    for level in range(settings["levels"] + 1):
        model = RandomHierarchy(**settings, latent_level=level)
        above = defaultdict(Counter)
        span = settings["branching"] ** (settings["levels"] - level)
        for tree in trees:
            for n in range(1, model.length + 1):
                above[tree[-1][:n]][tree[level][n // span]] += 1
        sample = model.sample(40, [4])
        for tokens, nats, latents in zip(*sample[:3], strict=True):
            for t in range(model.length):
                read, longer = tuple(tokens[: t + 1]), tuple(tokens[: t + 2])
                assert nats[t] == pytest.approx(math.log(counts[read] / counts[longer]), abs=1e-5)
                law = [above[read][a] / counts[read] for a in range(model.vocab_size)]
                np.testing.assert_allclose(latents[t], law, atol=1e-6)
    ratios = [
        math.log(counts[tree[-1][:n]] / counts[tree[-1][: n + 1]])
        for tree in trees
        for n in range(1, model.length + 1)
    ]
    assert model.floor == pytest.approx(math.fsum(ratios) / len(ratios), rel=1e-9)


@EVERY
def test_every_tree_is_as_frequent_as_another(settings):
    model = RandomHierarchy(**settings)
    trees = all_trees(model)
    tokens = model.sample(50 * len(trees), [5]).tokens
    counts = Counter(map(tuple, tokens.tolist()))
    assert chisquare([counts[tree[-1]] for tree in trees]).pvalue > 1e-3


@EVERY
def test_labels_are_the_tree_above_the_rows_of_the_same_seed(settings):
    model = RandomHierarchy(**settings)
    known = {tree[-1]: tree for tree in all_trees(model)}
    tokens, labels = model.sample(60, [6]).tokens, model.labels(60, [6])
    assert tuple(labels) == model.label_names
    for row, leaves in enumerate(map(tuple, tokens.tolist())):
        above = [tuple(level.values[row].tolist()) for level in labels.values()]
        assert above == known[leaves][:-1]
    for level in labels.values():
        below = tokens.shape[1] // level.values.shape[1]
        ends = range(below - 1, tokens.shape[1], below)
        assert level.places.tolist() == [min(end, model.length - 1) for end in ends]


def test_the_mean_of_nats_is_the_floor():
    model = RandomHierarchy()
    nats = model.sample(3_000, [7]).nats
    error = float(nats.mean(1).std()) / math.sqrt(3_000)
    assert nats.mean() == pytest.approx(model.floor, abs=4 * error)
    assert nats.shape == (3_000, 15)


def test_a_seed_gives_the_same_bytes_and_a_longer_sample_begins_with_a_shorter_one():
    model = RandomHierarchy()
    one, again, other = model.sample(20, [8]), model.sample(20, [8]), model.sample(20, [9])
    for field, same in zip(one[:3], again[:3], strict=True):
        assert field.tobytes() == same.tobytes()
    assert (one.tokens != other.tokens).any()
    longer = model.sample(50, [8])
    assert (longer.tokens[:20] == one.tokens).all()
    np.testing.assert_allclose(longer.latents[:20], one.latents, atol=1e-6)
    assert (RandomHierarchy(seed=1).rules != model.rules).any()
    assert (RandomHierarchy(seed=0).rules == model.rules).all()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"symbols": 1}, "symbols=1: expected a whole number from 2 to 256"),
        (
            {"rules": 17},
            "rules=17: expected at most 16, so that no two symbols share one of the 256 tuples",
        ),
        (
            {"symbols": 64, "branching": 5},
            "symbols=64: expected at most 16777216 tuples of its symbols, ",
        ),
        ({"levels": 15}, "levels=15: expected a whole number from 1 to 14"),
        (
            {"levels": 8, "branching": 4},
            "levels=8: expected at most 16384 leaves, and 16777216 for ",
        ),
        ({"latent_level": 5}, "latent_level=5: expected at most levels=4"),
    ],
)
def test_mistakes_name_the_key(settings, line):
    with pytest.raises(UserError) as error:
        RandomHierarchy(**settings)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
