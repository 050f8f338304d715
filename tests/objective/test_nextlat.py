"""NextLat: rollout along the text's tokens, against the formulas of the paper and the two-stage form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.objective.alignment import Given, TokenRollout
from jepa_lm.objective.distances import Comparison, SmoothL1, weighted_mean
from jepa_lm.objective.predictors import MLP, Transition
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import NOW, at, auxiliary, compared, noise, random_batch

B, T, D = 3, 9, 6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_transition_is_its_formula():
    step = Transition(dim=D, hidden=10)
    x, e = random(B, T, D), random(B, T, D, seed=1)
    a, b, c = step.linears
    joined = torch.cat((x, e), -1)
    normed = (joined - joined.mean(-1, keepdim=True)) / (
        joined.var(-1, unbiased=False, keepdim=True) + step.norm.eps
    ).sqrt()
    h = F.gelu(normed @ a.weight.T + a.bias)
    h = F.gelu(h @ b.weight.T + b.bias)
    torch.testing.assert_close(step(x, tokens=e), x + h @ c.weight.T + c.bias)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_rollout_uses_the_tokens_of_the_text(steps):
    def predictor(z, tokens):
        return 2 * z + tokens

    context, target, tokens = random(B, T, D), random(B, T, D, seed=1), random(B, T, D, seed=2)
    pairs = TokenRollout(steps=steps)(predictor, context, target, Given(tokens=tokens))
    assert [p.weight for p in pairs] == [1 / steps] * steps
    for k, pair in enumerate(pairs, start=1):
        for t in range(T - k):
            z = context[:, t]
            for i in range(1, k + 1):
                z = 2 * z + tokens[:, t + i]
            torch.testing.assert_close(pair.prediction[:, t], z, rtol=1e-5, atol=1e-4)
        assert torch.equal(pair.target, target[:, k:])


def test_the_loss_with_a_zero_start_is_smooth_l1_of_neighbours(build):
    words = (
        "objective=nextlat",
        NOW,
        "jepa.predictor.output_start=zero",
        "jepa/distance=smooth_l1",
    )
    task = build(*words)
    latents, main, _ = compared(task, random_batch())
    (pair,) = latents.pairs
    torch.testing.assert_close(pair.prediction, main.final[:, :-1])
    loss = auxiliary(task, random_batch())
    torch.testing.assert_close(loss, F.smooth_l1_loss(main.final[:, :-1], main.final[:, 1:]))


def test_a_token_changes_its_own_pair_and_none_before(build):
    task = build("objective=nextlat", NOW)
    noise(task)
    batch, other = random_batch(), random_batch()
    other["inputs"] = other["inputs"].clone()
    other["inputs"][:, 10] = (other["inputs"][:, 10] + 1) % 400
    (one,), (two,) = (compared(task, b)[0].pairs for b in (batch, other))
    same = (one.prediction == two.prediction).all(-1).all(0)
    assert same[:9].all()
    assert not same[9]  # h_9 does not see token 10; its transition is given it


def test_transition_learns_a_rotation_by_the_token_and_a_map_without_it_cannot():
    """The state turns by one of two angles, and only the token says by which."""
    draw = torch.Generator().manual_seed(0)
    angles = torch.tensor([0.3, -1.1])
    which = torch.randint(2, (64, 20), generator=draw)
    table = torch.eye(2)
    state = F.normalize(torch.randn(64, 2, generator=draw), dim=-1)
    states = [state]
    for t in range(1, 20):
        turn = angles[which[:, t]]
        cos, sin = turn.cos(), turn.sin()
        x, y = states[-1].T
        states.append(torch.stack((cos * x - sin * y, sin * x + cos * y), -1))
    h = torch.stack(states, 1)  # [64, 20, 2]
    given = Given(tokens=table[which])
    torch.manual_seed(0)
    ends = {}
    for predictor in (
        Transition(dim=2, hidden=64),
        MLP(dim=2, hidden=64, activation="gelu", bias=True),
    ):
        optimizer = torch.optim.Adam(predictor.parameters(), lr=4e-3)
        for _ in range(400):
            if predictor.takes_tokens:
                (pair,) = TokenRollout(steps=1)(predictor, h, h, given)
                loss = F.mse_loss(pair.prediction, pair.target)
            else:
                loss = F.mse_loss(predictor(h[:, :-1]), h[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends[type(predictor).__name__] = loss.item()
    assert ends["Transition"] < 1e-3
    assert ends["MLP"] > 0.1


def test_one_step_equals_the_two_stage_form(build, monkeypatch):
    """Published code: losses on detached copies, whose gradient then enters the trunk once. In double."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    task = build(
        "objective=nextlat", NOW, "jepa.alignment.steps=2", "jepa.alignment.detach_tokens=true"
    )
    noise(task)
    task.double()
    model, objective, batch = task.model, task.objective, random_batch()
    _, main = model(batch["inputs"])
    objective(model, batch, main, at()).backward()
    whole = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()

    encoded = model.encode(model.embed(batch["inputs"]))
    copy = encoded.final.detach().requires_grad_()
    tokens = model.embedding(batch["inputs"]).detach()
    law = model.logits(copy.detach()).detach().log_softmax(-1)
    z, loss = copy, 0.0
    for i in (1, 2):
        z = objective.predictor(z[:, :-1], tokens=tokens[:, i:])
        target = copy.detach()[:, i:]
        weight = model.embedding.table.weight.detach()
        predicted = model.softcap(F.linear(z, weight)) if model.softcap else F.linear(z, weight)
        kl = (law[:, i:].exp() * (law[:, i:] - predicted.float().log_softmax(-1))).sum(-1).mean()
        loss = loss + (F.smooth_l1_loss(z, target) + kl) / 2
    loss.backward()
    encoded.final.backward(copy.grad)
    staged = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    assert whole.keys() == staged.keys()
    for name, grad in whole.items():
        assert grad.dtype == torch.double
        torch.testing.assert_close(grad, staged[name], rtol=1e-6, atol=1e-12)


# ---- borders and prompts


def test_pairs_across_a_document_start_do_not_count():
    starts = torch.zeros(1, T, dtype=torch.bool)
    starts[0, 4] = True
    given = Given(tokens=random(1, T, D), starts=starts)
    pairs = TokenRollout(steps=3)(
        Transition(dim=D, hidden=8), random(1, T, D), random(1, T, D), given
    )
    for k, pair in enumerate(pairs, start=1):
        dropped = {t for t in range(T - k) if t < 4 <= t + k}
        assert {t for t in range(T - k) if not pair.rows[0, t]} == dropped
    # What is dropped does not matter to the loss, and the mean is over the rest.
    pair = pairs[0]
    scene = Comparison(None, None, pair.context, at(), pair.rows)
    target = pair.target.clone()
    target[0, 3] += 100
    one, two = (
        SmoothL1(reduction="mean")(pair.prediction, t, scene) for t in (pair.target, target)
    )
    assert one == two
    kept = torch.arange(T - 1) != 3
    torch.testing.assert_close(
        one, F.smooth_l1_loss(pair.prediction[:, kept], pair.target[:, kept])
    )


def test_a_run_knows_where_its_documents_start(build):
    task = build("objective=nextlat", NOW)
    task.objective.document_start = 7
    batch = random_batch()
    batch["inputs"] = batch["inputs"].clone()
    batch["inputs"][:, 10] = 7
    (pair,) = compared(task, batch)[0].pairs
    assert torch.equal(pair.rows[:, 9] == 0, torch.ones(4, dtype=torch.bool))


def test_prompts_count_for_latents_and_not_for_laws(build):
    task = build("objective=nextlat", NOW)
    noise(task)
    batch = random_batch()
    batch["answers"] = torch.zeros(4, 32, dtype=torch.bool)
    batch["answers"][:, 20:] = True
    latents, _, _ = compared(task, batch)
    found = task.objective.losses_of(latents, at())
    (pair,) = latents.pairs
    assert torch.equal(pair.answers, batch["answers"][:, 1:])
    torch.testing.assert_close(
        found["prediction_latents"], F.smooth_l1_loss(pair.prediction, pair.target)
    )
    z, t = (task.model.logits(x).float().log_softmax(-1) for x in (pair.prediction, pair.target))
    kl = (t.exp() * (t - z)).sum(-1)[:, 19:].mean()
    torch.testing.assert_close(found["prediction_law"], kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found["prediction"], found["prediction_latents"] + found["prediction_law"]
    )


def test_an_empty_mask_costs_nothing():
    assert weighted_mean(random(2, 3), torch.zeros(2, 3), at()) == 0


# ---- settings


def test_parts_of_a_sum_are_logged_with_their_weights(build):
    task = build("objective=nextlat", NOW, "jepa.distance.weights={latents: 2.0, law: 0.1}")
    weights = task.objective.weights(at().clock)
    assert weights == {"prediction": 1.0, "prediction_latents": 2.0, "prediction_law": 0.1}
    latents, _, _ = compared(task, random_batch())
    found = task.objective.losses_of(latents, at())
    whole = 2.0 * found["prediction_latents"] + 0.1 * found["prediction_law"]
    torch.testing.assert_close(found["prediction"].detach(), whole)
    assert task.objective.total(found, at().clock) == found["prediction"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("jepa.alignment.steps=40",), "jepa.alignment.steps=40: a sequence has only 32 latents"),
        (("~jepa.distance.weights.law",), "one weight for each of .*latents, law"),
        (
            (
                "jepa.alignment._target_=jepa_lm.objective.alignment.Rollout",
                "~jepa.alignment.detach_tokens",
                "~jepa.alignment.hide_tokens",
            ),
            "jepa.predictor: Rollout gives it no tokens, which Transition needs",
        ),
        (
            ("~jepa.predictor", "+jepa.predictor=null"),
            "TokenRollout gives it tokens, so it needs Transition",
        ),
    ],
)
def test_mistakes(build, words, message):
    with pytest.raises(UserError, match=message):
        build("objective=nextlat", *words)
