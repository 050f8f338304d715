"""Spans, replacements and suffixes; no feature of a masked token may leak."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_lm.model import Mask
from jepa_lm.objective.views import RandomReplacement, SpanMask, Suffix
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import at, compared, noise, random_batch


def spans_of(**changes) -> SpanMask:
    settings = dict(
        spans=4,
        mean_length=16,
        min_length=4,
        max_share=0.125,
        hide_next=True,
        start_std=0.0,
        seed=0,
    )
    return SpanMask(dim=8, **{**settings, **changes})


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.sampled_from([32, 33, 64, 256, 1024]))
def test_spans_keep_their_rules(seed, length):
    spans = spans_of().spans_of(length, torch.Generator().manual_seed(seed))
    assert 1 <= len(spans) <= 4
    assert all(4 <= end - start <= max(4, length // 8) for start, end in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[0][0] >= 0
    assert spans[-1][1] <= length


def test_an_overlapping_span_begins_where_the_previous_one_ended(monkeypatch):
    # Lengths 8, 8, 8 and starts 0, 4, 6: the second keeps its end, the third gets too short.
    lengths = torch.tensor([8.0, 8.0, 8.0], dtype=torch.float64)
    uniform = torch.stack(
        (
            -torch.expm1(torch.log1p(torch.tensor(-1 / 16.0)) * (lengths - 0.5)),
            torch.tensor([0.5, 4.5, 5.2]) / 57,
        )
    )
    monkeypatch.setattr(torch, "rand", lambda *a, **k: uniform.double())
    view = spans_of(spans=3)
    assert view.spans_of(64, torch.Generator()) == [(0, 8), (8, 12)]


def test_span_lengths_are_geometric_and_clamped():
    view = spans_of(spans=1)
    draw = torch.Generator().manual_seed(0)
    lengths = (
        torch.tensor([view.spans_of(100_000, draw)[0] for _ in range(4000)]).diff(dim=1).float()
    )
    free = lengths[lengths > 4]  # a geometric tail has the same mean beyond any point
    assert free.mean().item() - 4 == pytest.approx(16, abs=1.0)
    assert lengths.min() == 4


def test_draws_follow_seed_step_and_micro_batch_and_nothing_else():
    view = spans_of()
    inputs = torch.zeros(2, 256, dtype=torch.long)

    def positions(step_context, purpose="context"):
        return view(inputs, step_context, purpose).positions.tolist()

    torch.manual_seed(1)
    first = positions(at(3))
    torch.manual_seed(2)
    assert positions(at(3, rank=1, world_size=2)) == first
    assert positions(at(4)) != first
    assert positions(at(3, micro_batch=1)) != first
    assert positions(at(3), "target") != first
    assert spans_of(seed=1)(inputs, at(3), "context").positions.tolist() != first


def test_a_span_may_start_wherever_it_ends_inside():
    view = spans_of(spans=1, min_length=8, mean_length=2)
    draw = torch.Generator().manual_seed(0)
    spans = [view.spans_of(64, draw)[0] for _ in range(1000)]  # all of 8 tokens
    assert {start for start, _ in spans} == set(range(57))


def test_replacement_draws_the_joint_batch_on_every_rank():
    view = RandomReplacement(rate=0.15, vocab_size=50, seed=0)
    inputs = torch.arange(6)[:, None].expand(6, 64) + 100
    whole = view(inputs, at(), "context").inputs
    halves = [view(inputs[3 * r : 3 * r + 3], at(rank=r, world_size=2), "context") for r in (0, 1)]
    torch.testing.assert_close(torch.cat([half.inputs for half in halves]), whole)
    changed = (whole != inputs).float().mean().item()
    assert changed == pytest.approx(0.15, abs=0.05)
    assert whole[whole != inputs].max() < 50


def test_suffix_begins_at_the_floor_of_the_fraction():
    inputs = torch.arange(20)[None]
    assert Suffix(fraction=0.75)(inputs, at(), "target").inputs[0, 0] == 15
    assert Suffix(fraction=0.3)(inputs[:, :10], at(), "target").inputs[0, 0] == 3


@pytest.mark.parametrize(
    ("length", "message"),
    [(16, "data.seq_len to 32 or more"), (31, "min_length=4")],
)
def test_a_span_that_cannot_fit_is_refused(length, message):
    with pytest.raises(UserError, match=message):
        spans_of().check(length, "jepa.context.view")


# ---- leaks of masked tokens

LEAKY = {
    "xor": (),
    "cantor": ("model/bigram=cantor", "model.bigram.buckets=128"),
    "values": ("model/value_embedding=shared", "model.value_embedding.layers=[0,1]"),
}


def change_masked(task, batch):
    """Return the latents of a batch, and of the same batch with other ids at its masked tokens."""
    view = task.objective.context.view
    step_context = at(7)
    masked = view(batch["inputs"], step_context, "context").positions
    other = {**batch, "inputs": batch["inputs"].clone()}
    other["inputs"][:, masked] = (other["inputs"][:, masked] + 17) % 400
    return [compared(task, b, step_context)[0].pairs[0].prediction for b in (batch, other)]


@pytest.mark.parametrize("features", LEAKY)
def test_masked_tokens_leave_no_trace_in_predictions(build, features):
    task = build("objective=vicreg", "data.seq_len=64", *LEAKY[features])
    noise(task)
    before, after = change_masked(task, random_batch(length=64))
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_masked_tokens_own_bigram_would_be_seen(build, monkeypatch):
    """Planted bug: the embedding is replaced, but the bigram feature is added afterwards."""
    task = build("objective=vicreg", "data.seq_len=64")
    noise(task)
    embed = type(task.model).embed

    def leaky(model, inputs, mask=None):
        clean = embed(model, inputs, mask)
        return clean if mask is None else clean._replace(x=clean.x + model.bigram(inputs))

    monkeypatch.setattr(type(task.model), "embed", leaky)
    before, after = change_masked(task, random_batch(length=64))
    assert not torch.equal(before, after)


def test_the_published_pass_leaves_the_feature_after_a_span(build):
    task = build("objective=vicreg_published", "data.seq_len=64")
    noise(task)
    batch = random_batch(length=64)
    x = [
        task.model.embed(ids, Mask(where, torch.zeros(64), False)).x
        for where in [torch.arange(64).ge(8) & torch.arange(64).lt(12)]
        for ids in (batch["inputs"], batch["inputs"].index_fill(1, torch.arange(8, 12), 3))
    ]
    same = (x[0] == x[1]).all(-1).all(0)
    assert same[:12].all()
    assert not same[12]
    assert same[14:].all()  # 13 sees 12 through the smear gate
