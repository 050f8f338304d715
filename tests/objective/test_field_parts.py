"""Parts behind the objectives of the field: what they promise, and what they refuse."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.objective.alignment import Given, Offsets, TokenRollout
from jepa_lm.objective.batch_norm import BatchNorm
from jepa_lm.objective.displacements import Displacements
from jepa_lm.objective.distances import MSE, Comparison, Sum
from jepa_lm.objective.levels import Levels, PerLevel, Windows
from jepa_lm.objective.normalisations import LayerNorm
from jepa_lm.objective.predictors import MLP, LinearPerOffset, Transition
from jepa_lm.objective.taps import Blocks
from jepa_lm.objective.token_distances import TokenCrossEntropy, TokenRow
from jepa_lm.training.flops import count_parameters
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import NOW, at, auxiliary, compared, noise, random_batch
from tests.objective.test_sigreg import sigreg

CPU = torch.device("cpu")
B, T, D = 4, 12, 6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- displacements


def starts(*places: int, rows: int = B) -> torch.Tensor:
    found = torch.zeros(rows, T, dtype=torch.bool)
    found[:, list(places)] = True
    return found


def position_pair(form: str, step: int, given: torch.Tensor | None, rows: int = B):
    """Return the pair of rows whose latents are their positions, squared in a second dimension."""
    n = torch.arange(float(T)).expand(rows, T)
    x = torch.stack((n, n * n), -1)
    part = Displacements(form=form, seed=0)
    (pair,) = part(None, x, x, Given(starts=given, step_context=at(step)))
    return pair


def test_all_triples_are_equally_likely():
    """Of the ten within a document of five, drawn in 4,000 rows."""
    given = starts(5, 6, rows=4000)  # documents of 5, 1 and 6 latents
    pair = position_pair("triple", 0, given, rows=4000)
    moved, ahead = pair.prediction[:, 0], pair.target[:, 0]
    # From s, r, t in the position and its square: r + s is the ratio of the two moves, and so on.
    r_plus_s, t_plus_r = moved[:, 1] / moved[:, 0], ahead[:, 1] / ahead[:, 0]
    s, r = (r_plus_s - moved[:, 0]) / 2, (r_plus_s + moved[:, 0]) / 2
    t = t_plus_r - r
    counted = pair.rows[:, 0] > 0
    where = [tuple(x) for x in torch.stack((s, r, t), -1)[counted].round().int().tolist()]
    assert all(x[0] < x[1] < x[2] for x in where)
    first, last = [x for x in where if x[2] < 5], [x for x in where if x[0] >= 6]
    assert len(first) + len(last) == len(where)  # none crosses a border
    assert 0.05 < 1 - len(where) / 4000 < 0.12  # the document of one latent has 1 of 12 positions
    seen = Counter(first)
    assert len(seen) == 10
    assert max(seen.values()) < 1.4 * min(seen.values())
    assert len(set(last)) == 20


def test_rows_without_room_do_not_count():
    short = starts(*range(0, T, 2))
    assert not position_pair("triple", 0, short).rows.any()
    # Three latents leave the whole document as one span of three, which does not count.
    for step in range(20):
        pair = position_pair("span", step, starts(*range(0, T, 3), rows=40), rows=40)
        whole = pair.target[:, 0, 0] == 2
        assert torch.equal(pair.rows[:, 0] == 0, whole)


def test_a_later_document_does_not_change_a_move_in_an_earlier_one(build):
    """A run knows the token that starts a document."""
    task = build("objective=stp", NOW)
    task.objective.document_start = 7
    batch = random_batch()
    batch["inputs"] = batch["inputs"].masked_fill(batch["inputs"] == 7, 8)
    batch["inputs"][:, 16] = 7
    latents, main, _ = compared(task, batch)
    (scores,) = task.objective.alignment.draw(4, 32, at(), CPU)
    for row, score in enumerate(scores):
        side = slice(0, 16) if score.argmax() < 16 else slice(16, 32)
        s, r, _ = sorted(score[side].argsort(descending=True)[:3].tolist())
        h = main.final[row, side]
        torch.testing.assert_close(latents.pairs[0].prediction[row, 0], h[r] - h[s])


def test_a_placebo_compares_a_move_with_that_of_another_row_between_the_same_positions(build):
    task = build("objective=stp", NOW, "jepa.placebo=true")
    latents, main, _ = compared(task, random_batch())
    (scores,) = task.objective.alignment.draw(4, 32, at(), CPU)
    found = set()
    for row, score in enumerate(scores):
        s, r, t = sorted(score.argsort(descending=True)[:3].tolist())
        torch.testing.assert_close(
            latents.pairs[0].prediction[row, 0], main.final[row, r] - main.final[row, s]
        )
        moves = (main.final[:, t] - main.final[:, r]).roll(-row, 0)
        found |= {k for k in range(4) if torch.allclose(latents.pairs[0].target[row, 0], moves[k])}
    assert len(found) == 1
    assert found != {0}


def test_a_straight_line_costs_nothing_and_a_bend_does():
    straight = torch.arange(float(T))[None, :, None] * random(1, 1, D)
    for form in ("triple", "span"):
        for x, least in ((straight, 0.0), (random(1, T, D), 0.05)):
            given = Given(step_context=at())
            (pair,) = Displacements(form=form, seed=1)(None, x, x, given)
            apart = 1 - F.cosine_similarity(pair.prediction, pair.target, dim=-1)
            assert (apart.item() < 1e-5) == (least == 0.0)
            if form == "span":  # the moves before and after the span, and that within it
                moves = pair.prediction + pair.target
                torch.testing.assert_close(moves[:, 0], x[:, -1] - x[:, 0])


# ---- levels


def test_windows_pair_means_and_see_borders():
    x, y = random(B, T, D), random(B, T, D, seed=1)
    (pair,) = Windows(size=3)(None, x, y, Given(starts=starts(7)))
    assert pair.prediction.shape == (B, T - 5, D)
    for i in range(T - 5):
        torch.testing.assert_close(pair.prediction[:, i], x[:, i : i + 3].mean(1))
        torch.testing.assert_close(pair.target[:, i], y[:, i + 3 : i + 6].mean(1))
        assert (pair.rows[:, i] == 0).all() == (i < 7 <= i + 5)


def test_levels_use_their_own_predictors_and_are_weighed_apart(build):
    task = build("objective=hilp", NOW)
    noise(task)
    latents, _, _ = compared(task, random_batch())
    assert [pair.level for pair in latents.pairs] == ["tokens", "windows"]
    found = task.objective.losses_of(latents, at())
    whole = sum(
        weight * found[f"prediction_{name}"]
        for name, weight in {"latents": 10.0, "law": 0.1, "windows": 1.0}.items()
    )
    torch.testing.assert_close(found["prediction"].detach(), whole)
    one = build("objective=hilp", NOW, "jepa.distance.weights.windows=0")
    noise(one)
    loss = auxiliary(one, random_batch())
    torch.testing.assert_close(
        loss.detach(), whole - found["prediction_windows"], rtol=1e-4, atol=1e-5
    )
    loss.backward()
    assert one.objective.predictor.parts["windows"].up.weight.grad is None


# ---- tokens


def test_hidden_tokens_change_the_tokens_alone(build):
    open_, hidden = (
        build("objective=nextlat", NOW, f"jepa.alignment.hide_tokens={hide}")
        for hide in ("false", "true")
    )
    assert count_parameters(open_) == count_parameters(hidden)
    noise(open_)
    noise(hidden)
    (pair,) = compared(hidden, random_batch())[0].pairs
    step, zeros = hidden.objective.predictor, torch.zeros_like(pair.context)
    torch.testing.assert_close(pair.prediction, step(pair.context, tokens=zeros))
    assert not torch.allclose(
        compared(open_, random_batch())[0].pairs[0].prediction, pair.prediction
    )


def test_a_target_knows_the_token_that_it_stands_for():
    following = torch.arange(B * T).view(B, T)
    given = Given(following=following, tokens=random(B, T, D))
    x = random(B, T, D)
    pairs = [
        *Offsets(offsets=[2], stride=3)(None, x, x, given),
        *TokenRollout(steps=1)(Transition(dim=D, hidden=4), x, x, given),
    ]
    assert torch.equal(pairs[0].tokens, following[:, 2::3])
    assert torch.equal(pairs[1].tokens, following[:, 1:])
    (pooled,) = Offsets(offsets=[1])(None, x[:, :4], x[:, :4], given)
    assert pooled.tokens is None


@pytest.mark.parametrize("train_head", [True, False])
def test_the_cross_entropy_of_a_token_is_its_formula(build, train_head):
    task = build("objective=none", "model/head=untied")
    model, tokens = task.model, torch.arange(B * T).view(B, T)
    z = random(B, T, task.model.dim).requires_grad_()
    rows, answers = (random(B, T) > 0).float(), random(B, T, seed=1) > 0
    scene = Comparison(model, model, z, at(), rows, answers, tokens)
    found = TokenCrossEntropy(train_head=train_head)(z, z, scene)
    each = F.cross_entropy(model.logits(z).flatten(0, 1), tokens.flatten(), reduction="none")
    weights = (rows * answers).flatten()
    want = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(found, want)
    head = (
        model.head.linear.weight if hasattr(model.head, "linear") else next(model.head.parameters())
    )
    wanted = torch.autograd.grad(want, [z, head])
    got = torch.autograd.grad(found, [z, head], allow_unused=True)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-7)
    if train_head:
        torch.testing.assert_close(got[1], wanted[1], rtol=1e-4, atol=1e-7)
    else:
        assert got[1] is None


def test_the_placebo_asks_for_tokens_of_the_row_whose_latents_it_shows(build):
    task = build("objective=lse_mtp", NOW, "jepa.placebo=true")
    batch = random_batch(rows=5)
    latents, main, _ = compared(task, batch)
    pair = latents.pairs[0]
    (shift,) = [
        k for k in range(5) if torch.equal(pair.tokens, batch["targets"][:, 1:].roll(-k, 0))
    ]
    assert shift
    assert torch.equal(pair.target, main.final[:, 1:].roll(-shift, 0))


def test_the_row_of_a_token_does_not_train_the_table(build):
    task = build("objective=lse_mtp", NOW, "+jepa.context.stop_gradient=true")
    task.objective.distance.weights |= {"tokens": 0.0, "latents": 0.0}
    auxiliary(task, random_batch()).backward()
    assert task.model.embedding.table.weight.grad is None
    assert all(m.weight.grad.any() for m in task.objective.predictor.maps)


# ---- batch norm


def test_batch_norm_is_that_of_pytorch_and_keeps_nothing():
    ours, theirs = BatchNorm(dim=D, joint=False), torch.nn.BatchNorm1d(D)
    assert not dict(ours.named_buffers())
    x, y = (random(B, T, D).requires_grad_() for _ in range(2))
    got, want = ours(x), theirs(y.flatten(0, 1)).view(y.shape)
    torch.testing.assert_close(got, want)
    upstream = random(B, T, D, seed=1)
    got.backward(upstream)
    want.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.gain.grad, theirs.weight.grad)
    ours.eval()  # there is no other mode
    torch.testing.assert_close(ours(x), got)
    joint = BatchNorm(dim=D, joint=True)  # alone, all ranks are this one
    torch.testing.assert_close(joint(x), got)


# ---- blocks, linear maps, the factor of SIGReg


def test_blocks_are_normalised_each_and_joined():
    outputs = [random(B, T, D, seed=i) * (i + 1) for i in range(3)]
    normed = [F.layer_norm(x, (D,)) for x in outputs]
    mean = Blocks(blocks=[0, 1, 2], normalisation=LayerNorm())
    torch.testing.assert_close(mean.of(outputs), sum(normed) / 3)
    beside = Blocks(blocks=[0, 1, 2], normalisation=LayerNorm(), join="concat")
    torch.testing.assert_close(beside.of(outputs), torch.cat(normed, -1))
    raw = Blocks(blocks=[0, 1, 2])
    torch.testing.assert_close(raw.of(outputs), sum(outputs) / 3)


def test_each_offset_has_its_map():
    maps = LinearPerOffset(dim=D, offsets=2)
    x = random(B, T, D)
    for i in (0, 1):
        torch.testing.assert_close(maps(x, i), x @ maps.maps[i].weight.T)


def test_times_rows_is_a_factor_of_the_rows_of_a_sample():
    x = random(B, T, 8)
    for per_step, rows in ((True, B), (False, B * T)):
        plain, times = (
            sigreg(per_step=per_step, times_rows=times)(x, at()) for times in (False, True)
        )
        torch.testing.assert_close(times, rows * plain)


# ---- mistakes

MISTAKES = [
    (("objective=hilp", "~jepa.alignment.alignments.windows"), "one of each name: tokens"),
    (("objective=nextlat", "jepa/distance=hilp"), "no level tokens, windows; it has none"),
    (
        ("objective=lse_mtp", "jepa.distance.weights={latents: 0, rows: 0, tokens: 0}"),
        "weights: all are 0",
    ),
    (
        ("objective=patch", "jepa/distance=lse", "jepa.normalisation=null"),
        "TokenRow needs a target at each position",
    ),
    (
        ("objective=bootleg", "jepa.target.tap.blocks=[-4]"),
        r"tap.blocks=\[-4\]: block -4 does not exist",
    ),
    (
        ("objective=bootleg",),
        r"tap.blocks=\[0, 2, -1\]: reads a block twice, as the backbone has 3",
    ),
    (("objective=bootleg", "jepa.target.tap.blocks=[0,1]"), "width 192, their targets .*width 128"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_clear_line(build, words, message):
    with pytest.raises(UserError, match=message) as told:
        build(*words)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Displacements(form="triple", seed=0).check(2),
            "needs 3 latents in a row, and there are 2",
        ),
        (
            lambda: Windows(size=5).check(9),
            "two windows need 10 latents, and a sequence has only 9",
        ),
        (lambda: Levels(alignments={}), "needs at least one"),
        (lambda: Blocks(blocks=[]), "needs at least one block"),
        (
            lambda: Sum(
                distances={"a": MSE(reduction="mean")}, weights={"a": 1}, levels={"b": "x"}
            ),
            "b is none of jepa.distance.distances, which are a",
        ),
        (lambda: BatchNorm(dim=D, joint=False)(random(1, 1, D)), "one latent has no spread"),
    ],
)
def test_parts_refuse_what_they_cannot_do(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_level_without_its_predictor_is_refused():
    levels = Levels(alignments={"a": TokenRollout(steps=1)})
    with pytest.raises(UserError, match="so it needs Transition"):
        levels.check_predictor(PerLevel(parts={"a": MLP(dim=D, hidden=4, activation="gelu")}))


def test_rows_alone_would_miss_what_the_table_says(build):
    """Planted fault: a distance that compares with the latent instead of the row."""
    model = build("objective=none").model
    tokens, z = torch.arange(B * T).view(B, T), random(B, T, 64)
    scene = replace(Comparison(model, model, z, at()), tokens=tokens)
    found = TokenRow(reduction="mean")(z, z, scene)
    torch.testing.assert_close(found, (z - model.embedding(tokens)).square().mean())
    assert MSE(reduction="mean")(z, z, scene) == 0


def test_a_head_that_reads_nothing_asks_for_nothing(build):
    """The latent half of LSE-MTP has a cross entropy of weight 0; normalised latents are fine there."""
    words = (
        "objective=lse_mtp",
        "jepa.normalisation={_target_: jepa_lm.objective.normalisations.L2}",
    )
    with pytest.raises(UserError, match="TokenCrossEntropy reads latents by the head"):
        build(*words)
    build(*words, "jepa.distance.weights.tokens=0")
