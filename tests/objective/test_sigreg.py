"""SIGReg: the sweep equals the plain formula, and the statistic separates normal from other samples."""

from __future__ import annotations

import math

import pytest
import torch

from jepa_lm.objective.sigreg import SIGReg, knot_weights, statistic, statistic_reference
from jepa_lm.objective.statistics import standardised
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import at, compared, noise, random_batch

FORMS = {"published by #903": (0.2, 4.0, True), "published by #832": (0.2, 3.0, False)}
SHAPES = [(2, 1, 3), (7, 5, 11), (64, 8, 32), (300, 1, 17)]


def projections(shape, dtype=torch.float32, scale: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_sweep_equals_the_formula(form, shape, scale, monkeypatch):
    monkeypatch.setattr("jepa_lm.objective.sigreg_kernels.SWEEP_ELEMENTS", 100)  # several parts
    low, high, window = FORMS[form]
    t, weights = knot_weights(low, high, 17, window)
    found = []
    for function, dtype in ((statistic, torch.float32), (statistic_reference, torch.float64)):
        u = projections(shape, dtype, scale).requires_grad_()
        loss = function(u, t, weights)
        (3.0 * loss).backward()
        found.append((loss.item(), u.grad.double()))
    (fast, fast_grad), (plain, plain_grad) = found
    assert fast == pytest.approx(plain, rel=1e-6)
    assert (fast_grad - plain_grad).norm() <= 1e-5 * plain_grad.norm()


@pytest.mark.parametrize("joint", [False, True])
def test_a_compiler_gets_the_formula(joint):
    """It would unroll the sweep over knots into thousands of nodes."""
    nodes = []

    def counted(graph, inputs):
        nodes.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    t, weights = knot_weights(0.2, 4.0, 17, True)
    u = torch.randn(8, 4, 16)

    def loss(x):
        return statistic(x, t, weights, joint=joint)

    compiled = torch.compile(loss, backend=counted, fullgraph=True)
    torch.testing.assert_close(compiled(u), loss(u))
    assert nodes[0] < 40


def test_the_joint_form_is_the_same_for_one_rank(monkeypatch):
    """Two sweeps instead of one; what ranks exchange is tested in test_rank_statistics_slow.py."""
    monkeypatch.setattr("jepa_lm.objective.sigreg_kernels.SWEEP_ELEMENTS", 100)
    t, weights = knot_weights(0.2, 4.0, 17, True)
    found = []
    for joint in (False, True):
        u = projections((7, 5, 11)).requires_grad_()
        loss = statistic(u, t, weights, joint=joint)
        (3.0 * loss).backward()
        found.append((loss, u.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)


def test_gradients_are_right_in_float64():
    t, weights = knot_weights(0.2, 4.0, 17, True)
    u = projections((5, 2, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: statistic(v, t, weights), u)


def test_knot_weights_are_the_published_ones():
    t, weights = knot_weights(0.2, 4.0, 17, True)
    dt = 3.8 / 16
    for i in (0, 8, 16):
        assert t[i] == pytest.approx(0.2 + i * dt)
        inside = 1 if i in (0, 16) else 2
        assert weights[i] == pytest.approx(inside * dt * math.exp(-(t[i] ** 2) / 2))
    assert knot_weights(0.2, 3.0, 17, False)[1] == [1 / 17] * 17


def sigreg(**changes) -> SIGReg:
    settings = dict(
        tensor="context",
        weight=1.0,
        dim=8,
        directions=64,
        knots=17,
        low=0.2,
        high=4.0,
        window=True,
        per_step=False,
        max_steps=None,
        standardise=False,
        fresh=False,
        seed=0,
    )
    return SIGReg(**{**settings, **changes})


def test_it_is_near_zero_on_normal_samples_and_large_on_others():
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(8, 512, 8, generator=draw)
    collapsed = torch.zeros(8, 512, 8)
    flat = normal * torch.tensor([1.0] + [0.01] * 7)
    tails = torch.distributions.StudentT(1.5).sample((8, 512, 8))
    two = normal.sign()
    for form in (dict(), dict(window=False, high=3.0, standardise=True)):
        term = sigreg(**form)
        small = term(normal, at()).item()
        assert small < 1e-3
        for name, x in dict(collapsed=collapsed, tails=tails).items():
            assert term(x, at()).item() > 30 * small, name
        assert term(two, at()).item() > 2 * small
    assert sigreg()(flat, at()).item() > 30 * sigreg()(normal, at()).item()


def test_standardising_forgets_scale_and_shift_and_is_what_it_says():
    x = projections((4, 32, 8))
    term = sigreg(standardise=True, window=False, high=3.0)
    torch.testing.assert_close(term(5 * x + 2, at()), term(x, at()), rtol=1e-4, atol=1e-7)
    rows = x.reshape(-1, 8).double()
    rows = (rows - rows.mean(0)) / rows.std(0)
    t = torch.linspace(0.2, 3.0, 17, dtype=torch.float64)
    angle = (rows @ term.directions.double())[..., None] * t
    want = (angle.cos().mean(0) - torch.exp(-t * t / 2)) ** 2 + angle.sin().mean(0) ** 2
    assert term(x, at()).item() == pytest.approx(want.mean().item(), rel=1e-5)


def test_standardised_rows_have_gradients_through_mean_and_spread():
    rows = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    for joint in (False, True):  # one process is the whole of its ranks
        assert torch.autograd.gradcheck(
            lambda x, joint=joint: standardised(x, joint=joint, min_std=1e-6), rows
        )


def test_per_step_samples_are_the_rows_of_one_position():
    x = projections((16, 5, 8))
    whole = sigreg(per_step=True)(x, at())
    each = [sigreg()(x[:, i : i + 1], at()) for i in range(5)]
    torch.testing.assert_close(whole, torch.stack(each).mean(), rtol=1e-5, atol=1e-7)


def test_random_steps_and_fresh_directions_follow_the_moment():
    x = projections((8, 100, 8))
    term = sigreg(per_step=True, max_steps=10)
    assert term(x, at(1)) == term(x, at(1))
    assert term(x, at(1)) != term(x, at(2))
    fixed, fresh = sigreg(), sigreg(fresh=True)
    assert fixed(x, at(1)) == fixed(x, at(2))
    assert fresh(x, at(1)) != fresh(x, at(2))


@pytest.mark.parametrize("twice", [False, True])
def test_a_time_step_is_drawn_twice_on_request_alone(twice):
    term = sigreg(per_step=True, max_steps=30, with_replacement=twice)
    drawn = [term.draw(40, at(step), torch.device("cpu"))[0].tolist() for step in range(5)]
    assert all(len(steps) == 30 and set(steps) <= set(range(40)) for steps in drawn)
    assert any(len(set(steps)) < 30 for steps in drawn) == twice


@pytest.mark.parametrize("changes", [dict(knots=1), dict(low=4.0), dict(tensor="latents")])
def test_bad_settings_are_refused(changes):
    with pytest.raises(UserError):
        sigreg(**changes)


def test_a_width_that_is_not_that_of_the_latents_is_refused(build):
    with pytest.raises(UserError, match=r"dim=63.*64 dims"):
        build("objective=lewm", "jepa.regularizers.sigreg.dim=63")


# ---- all of lewm on the transformer, in float64, by the published formulas


def test_lewm_is_its_formula(build):
    task = build("objective=lewm", "jepa.regularizers.sigreg.max_steps=null")
    noise(task)
    batch = random_batch()
    latents, main, _ = compared(task, batch)
    objective = task.objective
    parts = objective.components(task.model, batch, main, at())
    aux = objective.total(parts, at().clock)

    h = main.final.detach().double()
    P, Q = (
        m.linear.weight.detach().double()
        for m in (objective.projector, objective.predictor.parts["out"])
    )
    mlp = objective.predictor.parts["mlp"]
    W1, b1, W2, b2 = (
        p.detach().double() for p in (mlp.up.weight, mlp.up.bias, mlp.down.weight, mlp.down.bias)
    )
    z = h @ P.T

    def g(x):
        a = x @ W1.T + b1
        return (a * (1 + torch.erf(a / math.sqrt(2))) / 2 @ W2.T + b2) @ Q.T

    p, losses = z[:, :-1], []
    for k in (1, 2, 3):
        p = g(p)
        common = z.shape[1] - k
        losses.append((p[:, :common] - z[:, k:]).pow(2).mean())
    prediction = sum(losses) / 3
    A = objective.regularizers["sigreg"].directions.double()
    t = torch.linspace(0.2, 4, 17, dtype=torch.float64)
    w = torch.full_like(t, 2 * 3.8 / 16)
    w[[0, -1]] = 3.8 / 16
    phi = torch.exp(-t * t / 2)
    angle = (z @ A)[..., None] * t  # [B, T, S, K]
    sig = ((angle.cos().mean(0) - phi) ** 2 + angle.sin().mean(0) ** 2) @ (w * phi)
    assert parts["prediction"].item() == pytest.approx(prediction.item(), rel=1e-4)
    assert parts["sigreg"].item() == pytest.approx(sig.mean().item(), rel=1e-4)
    assert aux.item() == pytest.approx((prediction + sig.mean()).item(), rel=1e-4)
    assert latents.pairs[0].target.requires_grad  # not detached
