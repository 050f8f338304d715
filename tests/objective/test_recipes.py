"""Every related recipe is a YAML file: its loss equals a formula written here, independent of the parts.

Hidden states come from the model; everything after them is recomputed in float64. Each recipe's weights
get a little noise first, and the copies that follow the model are moved away from it, so that no zero and
no equality hides a mistake.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.objective.conftest import DEEP_ENOUGH, RECIPES, at, auxiliary, noise, random_batch


def double(module: torch.nn.Module) -> SimpleNamespace:
    """Return parameters and buffers of a module in float64, by the last part of their names."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return SimpleNamespace(
        **{
            n.replace("predictor.", "").replace(".", "_"): t.detach().double()
            for n, t in tensors.items()
        }
    )


def gelu_mlp(m: SimpleNamespace, x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x @ m.up_weight.T) @ m.down_weight.T


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1.1920929e-7).sqrt()


def one_minus_cos(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (1 - (unit(p) * unit(t)).sum(-1)).mean()


def mse(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (p - t).pow(2).mean()


def smooth_l1(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    d = (p - t).abs()
    return torch.where(d < 1, d * d / 2, d - 0.5).mean()


def variance(x: torch.Tensor, gamma: float, eps: float) -> torch.Tensor:
    return (gamma - (x.reshape(-1, x.shape[-1]).var(0) + eps).sqrt()).clamp(min=0).mean()


def std_hinge(x: torch.Tensor, gamma: float) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return (gamma - (rows - rows.mean(0)).pow(2).mean(0).sqrt()).clamp(min=0).mean()


def covariance(x: torch.Tensor) -> torch.Tensor:
    c = torch.cov(x.reshape(-1, x.shape[-1]).T)
    return (c - torch.diag(c.diagonal())).pow(2).sum() / len(c)


def pr1006(h, o):
    P, E, m = double(o.projector), double(o.target.projector), double(o.predictor)
    z, target = gelu_mlp(P, h.boundary), gelu_mlp(E, h.final)
    loss, predictions = 0, []
    for i, k in enumerate((1, 2, 4, 8)):
        p = unit(gelu_mlp(m, z[:, :-k] + m.table_weight[i]))
        loss = loss + smooth_l1(p, unit(target[:, k:])) / 4
        predictions.append(p)
    normed = torch.cat(predictions, 1)
    return loss + variance(normed, 0.0625, 1e-6) + covariance(normed)


def pr1312(h, o):
    m, p, loss = double(o.predictor), h.boundary, 0
    for k, w in ((1, 1.0), (2, 0.5), (3, 0.25)):
        p = p + gelu_mlp(m, p)
        a, b = (F.layer_norm(x, (x.shape[-1],)) for x in (p[:, :-k], h.boundary[:, k:]))
        loss = loss + w / 1.75 * smooth_l1(a, b)
    return loss


def pr2027(h, o):
    sources = torch.arange(0, h.final.shape[1] - 4, 16)
    return one_minus_cos(
        gelu_mlp(double(o.predictor), h.final[:, sources]), h.final[:, sources + 4]
    )


def pr1116(h, o):
    return one_minus_cos(h.first_view.mean(1), h.second_view.mean(1))


def pr1277(h, o):
    m, x = double(o.predictor), h.final
    B, T, D = x.shape
    q, k, v = (
        (rms(x) @ w.T).view(B, T, 2, D // 2).transpose(1, 2)
        for w in (m.attention_query_weight, m.attention_key_weight, m.attention_value_weight)
    )
    half = D // 4
    angle = torch.arange(T).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)

    def rotate(y):
        a, b = rms(y).chunk(2, -1)
        return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()), -1)

    scores = rotate(q) * m.attention_q_gain[:, None, None] @ rotate(k).mT / (D // 2) ** 0.5
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D) @ m.attention_out_weight.T
    p = x + y
    p = p + F.gelu(rms(p) @ m.mlp_up_weight.T) @ m.mlp_down_weight.T
    return 2 * one_minus_cos(p, h.copy)


def pr1330(h, o):
    m, loss = double(o.predictor), 0
    for k in (1, 2, 4, 8):
        x = h.final[:, :-k]
        p = x + F.relu(rms(x) @ m.up_weight.T) ** 2 @ m.down_weight.T
        loss = loss + (1 / k) / 1.875 * mse(unit(p), unit(h.copy[:, k:]))
    return loss


def pr1443(h, o):
    p = gelu_mlp(double(o.predictor), h.final[:, :-1])
    return mse(p, h.final[:, 1:]) + std_hinge(p, 1.0) + 0.04 * covariance(p)


def pr1556(h, o):
    x = torch.stack([h.taps[i] for i in (2, 3, 4, 5)]).mean(0)
    p = gelu_mlp(double(o.predictor), x[:, :-1])
    d = (x[:, 1:] - x[:, :-1]).reshape(-1, x.shape[-1])
    eigenvalues = torch.linalg.eigvalsh(torch.cov(d.T))
    floor = (0.01 - eigenvalues / eigenvalues.mean()).clamp(min=0).mean()
    return mse(unit(p), unit(x[:, 1:])) + floor


def pr2142(h, o):
    p = gelu_mlp(double(o.predictor), h.final[:, :-8])
    return mse(rms(p), rms(h.final[:, 8:])) + std_hinge(p, 0.5)


def pr896(h, o):
    w = double(o.projector).linear_weight
    target = (h.copy @ w.T)[:, 1:]
    loss = mse((h.final @ w.T)[:, :-1], target)
    return loss + variance(target, 1.0, 1e-4) + 0.04 * covariance(target)


def pr1012(h, o):
    m = double(o.predictor)
    losses = [
        one_minus_cos(gelu_mlp(m, h.final[:, :-k] + m.table_weight[k - 1]), h.copy[:, k:])
        for k in (1, 2, 3, 4)
    ]
    return sum(losses) / 4


FORMULAS = (pr1006, pr1312, pr2027, pr1116, pr1277, pr1330, pr1443, pr1556, pr2142, pr896, pr1012)
NO_DROPOUT = {"recipes/pr1556": ("jepa.predictor.dropout=0.0",)}


def hidden_states(task, batch) -> SimpleNamespace:
    """Return the float64 hidden states that the formulas start from."""
    model, objective, inputs = task.model, task.objective, batch["inputs"]
    main = model.encode(model.embed(inputs), taps=range(model.layers))
    states = {"final": main.final, "boundary": main.taps[model.layers // 2 - 1]}
    copy = getattr(objective.target, "encoder", None)
    if copy is not None:
        start = main.embedded if objective.target.part == "blocks" else copy.embed(inputs)
        states["copy"] = copy.encode(start).final
    if objective.context.view is not None:
        for name, view, purpose in (
            ("first_view", objective.context.view, "context"),
            ("second_view", objective.target.view, "target"),
        ):
            seen = view(inputs, at(), purpose)
            states[name] = model.encode(model.embed(seen.inputs)).final
    states = {n: x.detach().double() for n, x in states.items()}
    return SimpleNamespace(**states, taps={i: x.detach().double() for i, x in main.taps.items()})


def test_every_row_has_a_formula():
    assert {f"recipes/{f.__name__}" for f in FORMULAS} == set(RECIPES)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)
def test_the_loss_of_a_recipe_is_its_formula(build, formula):
    recipe = f"recipes/{formula.__name__}"
    task = build(f"objective={recipe}", *DEEP_ENOUGH.get(recipe, ()), *NO_DROPOUT.get(recipe, ()))
    noise(task, std=0.05)
    for name, buffer in task.objective.target.named_buffers():
        if buffer.ndim == 2 and not name.startswith("view"):
            buffer += 0.03 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(5))
    batch = random_batch()
    with torch.no_grad():
        want = formula(hidden_states(task, batch), task.objective).item()
    assert auxiliary(task, batch).item() == pytest.approx(want, rel=2e-4)


PUBLISHED = {
    "pr1006": {"weight": 0.12, "target.momentum.value": 0.996, "alignment.offsets": [1, 2, 4, 8]},
    "pr1312": {"weight": 0.5, "alignment.weights": [1.0, 0.5, 0.25], "predictor.hidden": 128},
    "pr2027": {"weight": 0.03, "schedule.n": 8, "alignment.stride": 16, "predictor.hidden": 128},
    "pr1116": {"weight": 1.0, "context.view.rate": 0.15},
    "pr1277": {"weight": 0.3, "ce_schedule.value": 0.7, "target.momentum.start": 0.99},
    "pr1330": {"weight": 0.12, "schedule.steps": 100, "target.momentum.end": 0.999},
    "pr1443": {"predictor.output_start": "zero", "schedule.points": [[0.1, 1.0], [0.2, 0.0]]},
    "pr1556": {"weight": 0.1, "schedule.end": 0.1, "context.tap": [2, 3, 4, 5]},
    "pr2142": {"predictor.hidden": 64, "alignment.offsets": [8]},
    "pr896": {"weight": 0.3, "projector.out": 256, "target.momentum.value": 0.9995},
    "pr1012": {"weight": 0.5, "ce_schedule.value": 0.5, "target.momentum.value": 0.996},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_numbers(build, name):
    recipe = f"recipes/{name}"
    config = build(f"objective={recipe}", *DEEP_ENOUGH.get(recipe, ())).config["jepa"]
    for key, value in PUBLISHED[name].items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value, key
