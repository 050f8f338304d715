"""What a first step would do: the real step of a new optimizer, and nothing of the old one is changed."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from jepa_lm.objective.gradients import trunk_gradients
from jepa_lm.optim.first_steps import first_steps
from jepa_lm.optim.muon_adamw import MuonAdamW
from tests.objective.conftest import noise


def optimizer_of(matrices, vectors, decay: float = 0.0) -> MuonAdamW:
    return MuonAdamW(
        [
            {
                "params": matrices,
                "algorithm": "muon",
                "lr": 0.02,
                "ns_dtype": "float32",
                "weight_decay": decay,
            },
            {"params": vectors, "algorithm": "adamw", "lr": 0.01, "weight_decay": decay},
        ]
    )


def test_they_are_the_steps_of_a_new_optimizer():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(5))]
    before = [p.detach().clone() for p in parameters]
    gradients = [torch.randn_like(p) for p in parameters]
    used = optimizer_of(parameters[:1], parameters[1:], decay=0.3)
    for p in parameters:
        p.grad = torch.randn_like(p)
    used.step()
    for p, start in zip(parameters, before, strict=True):
        p.data.copy_(start)
    for group in used.param_groups:  # as a schedule leaves them at its end
        group |= {"initial_lr": group["lr"], "lr": 0.0}
    state = copy.deepcopy(used.state_dict())
    found = first_steps(used, dict(zip(parameters, gradients, strict=True)))
    for name, value in used.state_dict()["state"].items():
        for key, tensor in value.items():
            assert torch.equal(tensor, state["state"][name][key])
    for p, start, gradient in zip(parameters, before, gradients, strict=True):
        assert torch.equal(p, start)
        p.grad = gradient
    optimizer_of(parameters[:1], parameters[1:]).step()
    for p, start, step in zip(parameters, before, found, strict=True):
        torch.testing.assert_close(p - start, step, atol=1e-6, rtol=1e-5)


def test_the_cosine_is_one_without_the_loss_and_falls_with_its_weight(build):
    task = build("objective=lewm")
    noise(task)
    optimizer = task.configure_optimizers()["optimizer"]
    ids = torch.randint(0, 400, (4, 33))
    hidden = task.model.encode(task.model.embed(ids[:, :-1])).final
    ce = task.model.cross_entropy(hidden, ids[:, 1:], 0.0)[0]
    other = hidden.square().mean() + hidden.roll(1, 1).mul(hidden).mean()

    def at(weight: float) -> float:
        figures = trunk_gradients(
            task.model,
            ce,
            weight * other,
            per_layer=False,
            first_steps=partial(first_steps, optimizer),
        )
        return figures["trunk_step_cosine"].item()

    found = [at(weight) for weight in (0.0, 1e-3, 0.1, 10.0)]
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert sorted(found, reverse=True) == found
    assert found[-1] < 0.9
