"""Hidden Markov models: samples follow the law they claim, and the filter is that of a plain loop."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare

from jepa_lm.data.synthetic import examples
from jepa_lm.data.synthetic.markov import RRXOR, HiddenMarkov, Mess3
from jepa_lm.utils.errors import UserError

MODELS = {
    "hidden": lambda length=12: HiddenMarkov(states=5, symbols=6, length=length, seed=3),
    "mess3": lambda length=12: Mess3(length=length),
    "rrxor": lambda length=12: RRXOR(length=length),
}
EVERY = pytest.mark.parametrize("model", [make() for make in MODELS.values()], ids=list(MODELS))


def probability(model, tokens) -> float:
    """Return the probability of a row by the forward algorithm, without any normalisation."""
    alpha = [float(p) for p in model.start]
    for x in map(int, tokens):
        states = range(len(alpha))
        alpha = [sum(alpha[i] * float(model.edges[x, i, j]) for i in states) for j in states]
    return math.fsum(alpha)


def all_rows(symbols: int, length: int) -> np.ndarray:
    """Return every row of a length, in the order of its digits."""
    return np.stack(np.unravel_index(np.arange(symbols**length), (symbols,) * length), axis=1)


@EVERY
def test_edges_are_probabilities_and_the_start_is_stationary(model):
    assert (model.edges >= 0).all()
    np.testing.assert_allclose(model.edges.sum((0, 2)), 1, atol=1e-12)
    np.testing.assert_allclose(model.start @ model.edges.sum(0), model.start, atol=1e-12)
    assert model.start.sum() == pytest.approx(1)
    assert len(model.names) == model.vocab_size == len(model.edges)


@EVERY
def test_nats_are_ratios_of_the_probabilities_of_prefixes(model):
    sample = model.sample(20, [5])
    for tokens, nats in zip(sample.tokens, sample.nats, strict=True):
        prefixes = [probability(model, tokens[: t + 1]) for t in range(model.length + 1)]
        np.testing.assert_allclose(nats, -np.diff(np.log(prefixes)), rtol=1e-5, atol=1e-6)


@EVERY
def test_latents_give_the_law_of_the_target_and_never_look_ahead(model):
    sample = model.sample(20, [6])
    targets = sample.tokens[:, 1:, None].astype(int)
    law = sample.latents @ model.emission  # [R, T, V]
    np.testing.assert_allclose(sample.latents.sum(2), 1, atol=1e-6)
    np.testing.assert_allclose(
        np.exp(-sample.nats), np.take_along_axis(law, targets, 2)[..., 0], rtol=1e-4
    )
    for tokens, latents in zip(sample.tokens[:3], sample.latents[:3], strict=True):
        for t in range(model.length):
            read = tokens[: t + 1]
            ahead = [probability(model, [*read, x]) for x in range(model.vocab_size)]
            expected = np.array(ahead) / probability(model, read)
            np.testing.assert_allclose(latents[t] @ model.emission, expected, atol=1e-6)


@EVERY
def test_rows_have_the_frequencies_of_the_law(model):
    rows = all_rows(model.vocab_size, 3)
    expected = np.array([probability(model, row) for row in rows])
    tokens = model.sample(40_000, [7]).tokens
    for first in (0, model.length - 2):  # the chain is stationary
        codes = np.ravel_multi_index(
            tokens[:, first : first + 3].T.astype(int), (model.vocab_size,) * 3
        )
        counts = np.bincount(codes, minlength=len(rows))
        assert counts[expected < 1e-15].sum() == 0
        often = expected * 40_000 > 5
        pooled = [*counts[often], counts[~often].sum()]
        law = [*expected[often], expected[~often].sum()]
        keep = slice(None) if law[-1] > 1e-9 else slice(-1)
        assert chisquare(pooled[keep], 40_000 * np.array(law[keep])).pvalue > 1e-3


@EVERY
def test_the_mean_of_nats_is_the_conditional_entropy(model):
    short = type(model)(length=4) if not isinstance(model, HiddenMarkov) else MODELS["hidden"](4)
    whole, first = (
        np.array([probability(short, row) for row in all_rows(short.vocab_size, n)]) for n in (5, 1)
    )
    entropy = -sum(whole[whole > 0] * np.log(whole[whole > 0])) + sum(first * np.log(first))
    nats = short.sample(40_000, [8]).nats
    error = float(nats.mean(1).std()) / 200
    assert nats.mean() == pytest.approx(entropy / 4, abs=4 * error)


@EVERY
def test_a_seed_gives_the_same_bytes_and_a_longer_sample_begins_with_a_shorter_one(
    model, monkeypatch
):
    one, again, other = model.sample(30, [1, 2]), model.sample(30, [1, 2]), model.sample(30, [1, 3])
    for field, same in zip(one[:3], again[:3], strict=True):
        assert field.tobytes() == same.tobytes()
    assert (one.tokens != other.tokens).any()
    monkeypatch.setattr(examples, "MOST_SCRATCH", 1 << 17)  # drawn in several parts
    longer = model.sample(5_000, [1, 2])
    assert len(longer.tokens) == 5_000
    assert (longer.tokens[:30] == one.tokens).all()
    np.testing.assert_allclose(longer.latents[:30], one.latents, atol=1e-6)
    assert len(np.unique(longer.tokens, axis=0)) > 500


def test_the_hidden_chain_is_drawn_from_its_seed():
    first, again, other = (HiddenMarkov(seed=seed).edges for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert HiddenMarkov(sticky=0.85).edges.sum(0).max(1).min() > 0.85


def test_mess3_has_the_published_matrices():
    edges = Mess3(x=0.15, a=0.6).edges
    first = [[0.42, 0.03, 0.03], [0.09, 0.14, 0.03], [0.09, 0.03, 0.14]]
    second = [[0.14, 0.09, 0.03], [0.03, 0.42, 0.03], [0.03, 0.09, 0.14]]
    third = [[0.14, 0.03, 0.09], [0.03, 0.14, 0.09], [0.03, 0.03, 0.42]]
    np.testing.assert_allclose(edges, [first, second, third], atol=1e-12)


def laws_within(model, symbols: int) -> int:
    """Return the number of laws of the state that some row of up to `symbols` symbols leads to, exactly."""
    exact = np.vectorize(lambda p: Fraction(float(p)).limit_denominator(1000), otypes=[object])
    edges, found = exact(model.edges), {tuple(exact(model.start))}
    new = found
    for _ in range(symbols):
        joint = [np.array(law) @ matrix for law in new for matrix in edges]
        new = {tuple(weights / weights.sum()) for weights in joint if weights.sum()} - found
        found = found | new
    return len(found)


def test_laws_of_mess3_never_meet_and_those_of_rrxor_are_the_published_36():
    assert laws_within(Mess3(), 5) == sum(3**n for n in range(6))
    assert laws_within(RRXOR(), 30) == 36


def test_rrxor_repeats_two_bits_and_their_exclusive_or():
    tokens = RRXOR(length=59).sample(2_000, [9]).tokens.astype(int).reshape(2_000, 20, 3)
    phases = np.stack(
        [tokens.reshape(2_000, 60)[:, s : s + 57].reshape(2_000, 19, 3) for s in range(3)]
    )
    obeyed = (phases[..., 0] ^ phases[..., 1] == phases[..., 2]).all(2)  # [phase, R]
    assert obeyed.any(0).all()
    assert obeyed.mean(1) == pytest.approx([1 / 3] * 3, abs=0.05)


@pytest.mark.parametrize(("p", "q", "bits"), [(0.5, 0.5, 2 / 3), (0.11, 0.5, 0.5), (0, 1, 0)])
def test_the_floor_of_rrxor_is_what_late_targets_cost(p, q, bits):
    model = RRXOR(p=p, q=q, length=150)
    assert model.floor == pytest.approx(bits * math.log(2), abs=1e-4)
    nats = model.sample(4_000, [10]).nats
    late = nats[:, 90:].mean(1)
    assert late.mean() == pytest.approx(
        model.floor, abs=4 * float(late.std()) / math.sqrt(4_000) + 2e-3
    )
    assert nats.mean() > model.floor


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: HiddenMarkov(states=1), "states=1: expected a whole number from 2 to 128"),
        (lambda: HiddenMarkov(symbols=129), "symbols=129: expected a whole number from 2 to 128"),
        (lambda: HiddenMarkov(length=0), "length=0: expected a whole number from 1 to 65536"),
        (lambda: HiddenMarkov(sticky=1), "sticky=1: expected a number of at least 0 and below 1"),
        (lambda: HiddenMarkov(emission=0), "emission=0: expected a number above 0"),
        (lambda: Mess3(x=0), "x=0: expected a number above 0 and at most 0.5"),
        (lambda: RRXOR(p=1.5), "p=1.5: expected a number from 0 to 1"),
        (lambda: RRXOR().sample(0, [1]), "rows=0: expected from 1 to 589968, "),
        (lambda: RRXOR().sample(10**9, [1]), "rows=1000000000: expected from 1 to 589968, "),
    ],
)
def test_mistakes_name_the_key(make, line):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
