"""Pooling, taps, alignments, normalisations, distances, predictors: each against its plain formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.objective import distances
from jepa_lm.objective.alignment import (
    Given,
    MaskedPositions,
    NextFromStart,
    Offsets,
    Rollout,
    SamePosition,
)
from jepa_lm.objective.distances import (
    MSE,
    Comparison,
    Cosine,
    Euclidean,
    InfoNCE,
    SmoothL1,
    SoftCrossEntropy,
    Sum,
    weighted_mean,
)
from jepa_lm.objective.latents import Latents
from jepa_lm.objective.normalisations import L2, RMS, LayerNorm
from jepa_lm.objective.pooling import ChunkLast, ChunkMean, PrefixEnd, SequenceMean
from jepa_lm.objective.predictors import (
    MLP,
    CausalAttention,
    Chain,
    OffsetConditioned,
    Projection,
    once,
)
from jepa_lm.objective.step_context import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import compared, noise, random_batch

X = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(1))
STEP = StepContext(ProgressClock(max_steps=1, max_time=None))
HERE = Comparison(model=None, target_model=None, context=X, step_context=STEP)


def test_pooling():
    torch.testing.assert_close(ChunkMean(size=4)(X)[:, 1], X[:, 4:8].mean(1))
    torch.testing.assert_close(ChunkLast(size=4)(X), X[:, [3, 7, 11]])
    torch.testing.assert_close(SequenceMean()(X)[:, 0], X.sum(1) / 12)
    torch.testing.assert_close(PrefixEnd(fraction=0.75)(X)[:, 0], X[:, 8])
    assert [p.latents(12) for p in (ChunkMean(size=4), ChunkLast(size=3), SequenceMean())] == [
        3,
        4,
        1,
    ]


def test_chunk_pooling_reads_nothing_after_its_chunk():
    changed = X.clone()
    changed[:, 8:] += 1
    for pooling in (ChunkMean(size=4), ChunkLast(size=4)):
        torch.testing.assert_close(pooling(changed)[:, :2], pooling(X)[:, :2])


def double(x, offset=0):
    return 2 * x + offset


def test_alignments_pair_what_they_say():
    (same,) = SamePosition()(double, X, Y, Given())
    assert torch.equal(same.prediction, 2 * X)
    assert torch.equal(same.target, Y)
    (masked,) = MaskedPositions()(double, X, Y, Given(torch.tensor([2, 5])))
    assert torch.equal(masked.prediction, 2 * X[:, [2, 5]])
    assert torch.equal(masked.target, Y[:, [2, 5]])
    pairs = Offsets(offsets=[1, 3], weights=[3, 1])(double, X, Y, Given())
    assert [p.weight for p in pairs] == [0.75, 0.25]
    assert torch.equal(pairs[1].prediction, 2 * X[:, :9] + 1)  # the second offset's index
    assert torch.equal(pairs[1].target, Y[:, 3:])
    (strided,) = Offsets(offsets=[2], stride=4)(double, X, Y, Given())
    assert torch.equal(strided.prediction, 2 * X[:, [0, 4, 8]])
    assert torch.equal(strided.target, Y[:, [2, 6, 10]])
    rolled = Rollout(steps=3)(double, X, Y, Given())
    assert [p.weight for p in rolled] == [1 / 3] * 3
    for k, pair in enumerate(rolled, start=1):
        assert torch.equal(pair.prediction, 2**k * X[:, : 12 - k])
        assert torch.equal(pair.target, Y[:, k:])
        assert torch.equal(pair.context, X[:, : 12 - k])
    start = NextFromStart(dim=6, std=0.02)
    (next_,) = start(double, X, Y, Given())
    assert torch.equal(next_.prediction[:, 1:], 2 * X[:, :-1])
    torch.testing.assert_close(next_.prediction[:, 0], 2 * start.start.expand(3, 6))
    assert torch.equal(next_.target, Y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Offsets(offsets=[0]), "offsets=.0."),
        (lambda: Offsets(offsets=[1, 2], weights=[1.0]), "needs 2 weights"),
        (lambda: Offsets(offsets=[8]).check(8), "only 8 latents"),
        (lambda: Rollout(steps=0), "steps=0"),
        (lambda: Rollout(steps=4).check(4), "only 4 latents"),
        (lambda: ChunkMean(size=0), "size=0"),
        (lambda: ChunkMean(size=5).check(12, "jepa.x"), "jepa.x.size=5: must divide"),
        (lambda: PrefixEnd(fraction=0.0).check(12, "jepa.x"), "jepa.x.fraction=0.0"),
        (lambda: MLP(dim=4, hidden=4, activation="tanh"), "activation=tanh"),
        (lambda: MLP(dim=4, hidden=4, out=5, activation="gelu", residual=True), "residual"),
        (lambda: CausalAttention(dim=6, heads=4, hidden=4), "heads=4"),
        (lambda: MSE(reduction="median"), "reduction=median"),
        (lambda: Chain(parts={}), "parts={}: needs at least one"),
    ],
)
def test_parts_refuse_what_they_cannot_do(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_normalisations():
    norms = X.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(L2()(X), X / norms)
    assert L2()(torch.zeros(2, 3)).eq(0).all()
    torch.testing.assert_close(RMS()(X), X / norms * math.sqrt(6), rtol=1e-5, atol=1e-6)
    centred = X - X.mean(-1, keepdim=True)
    std = centred.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(LayerNorm()(X), centred / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "dim"), [(L2(), 16), (RMS(), 16), (LayerNorm(), 16)])
def test_no_normalised_rows_have_more_than_the_reachable_std(norm, dim):
    best = 0.0
    for seed in range(20):
        rows = torch.randn(4000, dim, generator=torch.Generator().manual_seed(seed)).sign()
        best = max(best, norm(rows).std(0, unbiased=False).min().item())
    assert 0.97 * norm.reachable_std(dim) < best <= norm.reachable_std(dim) * 1.0001


def test_distances():
    d = X - Y
    torch.testing.assert_close(MSE(reduction="mean")(X, Y, HERE), d.square().mean())
    torch.testing.assert_close(MSE(reduction="sum")(X, Y, HERE), d.square().sum(-1).mean())
    smooth = torch.where(d.abs() < 1, d.square() / 2, d.abs() - 0.5)
    torch.testing.assert_close(SmoothL1(reduction="mean")(X, Y, HERE), smooth.mean())
    cos = (F.normalize(X, dim=-1) * F.normalize(Y, dim=-1)).sum(-1)
    torch.testing.assert_close(Cosine(scale=2.0)(X, Y, HERE), (2 - 2 * cos).mean())
    torch.testing.assert_close(Euclidean()(X, Y, HERE), d.square().sum(-1).sqrt().mean())
    law = Y.softmax(-1)
    nats = -(law * X.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(SoftCrossEntropy()(X, law, HERE), nats)
    # Why the mean misleads: orthogonal unit vectors are 2 / D apart.
    a, b = torch.eye(512)[None, :1], torch.eye(512)[None, 1:2]
    assert MSE(reduction="mean")(a, b, HERE).item() == pytest.approx(0.0039, abs=1e-4)


def test_weighted_means_of_ranks_average_to_the_mean_over_all(monkeypatch):
    """Ranks whose rows count to different amounts, one after the other in this process."""
    values, weights = X[..., 0], (Y[..., 0] > 0.3).float()
    monkeypatch.setattr(distances, "sum_over_ranks", lambda total: weights.sum())
    shares = [
        weighted_mean(values[r], weights[r], StepContext(STEP.clock, world_size=3))
        for r in range(3)
    ]
    assert len({w.sum().item() for w in weights}) > 1
    torch.testing.assert_close(sum(shares) / 3, values[weights > 0].mean())


def test_shares_of_pairs_weigh_the_loss_and_each_part_of_it():
    pairs = Offsets(offsets=[1, 3], weights=[3, 1])(None, X, Y, Given())
    latents = Latents(pairs, [(p.prediction, p.target) for p in pairs], X, None, None)
    each = {"squares": MSE(reduction="sum"), "cosine": Cosine(scale=1.0)}
    want = {
        name: sum(p.weight * distance(p.prediction, p.target, HERE) for p in pairs)
        for name, distance in each.items()
    }
    alone = latents.distances(each["squares"], STEP)
    assert alone.keys() == {"prediction"}
    torch.testing.assert_close(alone["prediction"], want["squares"])
    both = Sum(distances=each, weights={"squares": 0.5, "cosine": 2.0})
    found = latents.distances(both, STEP)
    torch.testing.assert_close(found["prediction"], 0.5 * want["squares"] + 2 * want["cosine"])
    for name, value in want.items():
        torch.testing.assert_close(found[f"prediction_{name}"], value)


def test_info_nce_finds_each_target_among_all_of_the_batch():
    """Plain loops, and its extremes: all targets alike, and each prediction at its own."""
    p, t = X[:, :2], Y[:, :2]  # six rows
    one, other = p.reshape(6, 6), t.reshape(6, 6)
    nats = []
    for i in range(6):
        cos = torch.stack([F.cosine_similarity(one[i], other[j], dim=0) for j in range(6)]) / 0.2
        nats.append(torch.logsumexp(cos, 0) - cos[i])
    distance = InfoNCE(temperature=0.2)
    torch.testing.assert_close(distance(p, t, HERE), torch.stack(nats).mean())
    assert distance(p, t[:1, :1].expand(3, 2, 6), HERE).item() == pytest.approx(math.log(6))
    apart = torch.eye(6).reshape(3, 2, 6)
    assert InfoNCE(temperature=0.01)(apart, apart, HERE) < 1e-6
    assert distance(p, t.flip(0), HERE) != distance(p, t, HERE)


def test_info_nce_leaves_out_what_does_not_count():
    p, t, rows = X[:, :2], Y[:, :2], torch.tensor([[1.0, 1], [1, 0], [0, 0]])
    found = InfoNCE(temperature=0.2)(p, t, replace(HERE, rows=rows))
    kept = [x[rows > 0][None] for x in (p, t)]
    torch.testing.assert_close(found, InfoNCE(temperature=0.2)(*kept, HERE))


@pytest.mark.parametrize("hidden_norm", ["none", "rms", "layer_norm"])
@pytest.mark.parametrize("activation", ["relu2", "relu", "gelu", "silu"])
def test_mlp_is_its_formula(hidden_norm, activation):
    mlp = MLP(
        dim=6,
        hidden=10,
        activation=activation,
        bias=True,
        input_norm="rms",
        hidden_norm=hidden_norm,
        residual=True,
    )
    h = F.linear(X / (X.square().mean(-1, keepdim=True) + 1e-7).sqrt(), mlp.up.weight, mlp.up.bias)
    if hidden_norm == "rms":
        h = h / (h.square().mean(-1, keepdim=True) + 1e-7).sqrt()
    if hidden_norm == "layer_norm":
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    act = {
        "relu2": lambda x: x.clamp(min=0) ** 2,
        "relu": lambda x: x.clamp(min=0),
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "silu": lambda x: x * torch.sigmoid(x),
    }[activation]
    want = X + F.linear(act(h), mlp.down.weight, mlp.down.bias)
    torch.testing.assert_close(mlp(X), want, rtol=1e-4, atol=1e-5)


def test_chain_offset_embedding_and_starts():
    first = MLP(dim=6, hidden=8, activation="gelu", start="orthogonal", output_start="zero")
    last = Projection(dim=6, out=3)
    chain = Chain(parts={"a": first, "b": last})
    torch.testing.assert_close(chain(X), last(first(X)))
    assert chain.out_dim == 3
    assert first.starts_at_zero
    assert not first.down.weight.any()
    residual = MLP(dim=6, hidden=8, activation="gelu", residual=True, output_start="zero")
    assert not residual.starts_at_zero  # it starts as the identity
    gram = first.up.weight.T @ first.up.weight
    torch.testing.assert_close(gram, torch.eye(6), rtol=1e-4, atol=1e-5)
    told = OffsetConditioned(dim=6, offsets=2, std=1.0, predictor=last)
    torch.testing.assert_close(told(X, 1), last(X + told.table.weight[1]))


def test_a_projector_is_called_once_for_each_tensor():
    calls = []
    project = once(lambda x: calls.append(x) or 2 * x)
    found = [project(x) for x in (X, X, Y, Y)]
    assert torch.equal(found[1], 2 * X)
    assert torch.equal(found[3], 2 * Y)
    assert len(calls) == 2


def test_the_attention_predictor_is_causal_and_looks_back():
    predictor = CausalAttention(dim=8, heads=2, hidden=16)
    noise(predictor, std=0.3)
    x = torch.randn(2, 9, 8)
    later, earlier = x.clone(), x.clone()
    later[:, 5:] += 1
    earlier[:, 2] += 1
    torch.testing.assert_close(predictor(later)[:, :5], predictor(x)[:, :5])
    assert not torch.allclose(predictor(earlier)[:, 4], predictor(x)[:, 4])


@pytest.mark.parametrize("tap", ["final", "last", "embedding", "boundary", 1, -1, [0, 2]])
def test_taps_read_the_hidden_state_they_name(build, tap):
    task = build("objective=lewm", f"jepa.context.tap={tap}", "jepa.projector=null")
    noise(task)
    latents, main, _ = compared(task, random_batch())
    model = task.model
    outputs = model.encode(model.embed(random_batch()["inputs"]), taps=(0, 1, 2)).taps
    want = {
        "final": main.final,
        "last": outputs[2],
        "embedding": main.embedded.x,
        "boundary": outputs[0],
        "1": outputs[1],
        "-1": outputs[2],
        "[0, 2]": (outputs[0] + outputs[2]) / 2,
    }[str(tap)]
    torch.testing.assert_close(latents.context, want)
