"""Gradients of the objectives in training: parameters, first steps, accumulation, how deep they reach."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.model import token_nll
from jepa_lm.objective.gradients import gradients, norm
from jepa_lm.objective.reach import reach_table
from tests.objective.conftest import (
    DEEP_ENOUGH,
    EVERY,
    FROZEN,
    NOW,
    ZERO,
    at,
    auxiliary,
    compared,
    every_but,
    noise,
    random_batch,
)


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_moves_within_two_active_steps(build, name):
    more = ("jepa.ce_schedule=null", *DEEP_ENOUGH.get(name, ()))
    assert moved_nothing(build(f"objective={name}", NOW, *more)) == []


def moved_nothing(task) -> list[str]:
    """Return the parameters that do not move in two steps with an active objective."""
    optimizer, _ = task.recipe.configure(task, task.clock)
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    for step in range(2):
        batch = random_batch(seed=step)
        logits, main = task.model(batch["inputs"], *task.objective.main_needs(task.model))
        aux = task.objective(task.model, batch, main, at(step))
        (token_nll(logits, batch["targets"]).mean() + aux).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [n for n, p in task.named_parameters() if torch.equal(p, before[n])]


@pytest.mark.parametrize("name", every_but("vicreg_published"))
def test_every_objective_trains_the_other_backbone(build, name):
    """Objectives depend on taps, not on attention: all parameters of Mamba-2 move, too.

    The published mask vector is left out: it starts at zero, and here takes three steps to move.
    """
    more = (NOW, "jepa.ce_schedule=null", *DEEP_ENOUGH.get(name, ()))
    assert moved_nothing(build("model=mamba2", f"objective={name}", *more)) == []


def start_norms(build, name) -> dict[str, float]:
    task = build(f"objective={name}", *DEEP_ENOUGH.get(name, ()))
    auxiliary(task, random_batch()).backward()
    return {n: p.grad.norm().item() for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", every_but("vicreg_published"))
def test_gradients_at_the_start_are_finite_and_bounded(build, name):
    """A zero output before a normalisation without eps would give a huge first gradient."""
    norms = start_norms(build, name)
    assert max(norms.values()) < 100  # false for NaN, too


def test_the_published_mask_vector_starts_with_a_huge_gradient(build):
    """Planted bug: zero before an RMS norm. The published ramp has weight 0 at that step."""
    assert start_norms(build, "vicreg_published")["objective.context.view.vector"] > 1e5


# Regularizers are statistics of a micro-batch; without them these objectives are per sequence.
PER_SEQUENCE = {
    "llm_jepa": (),
    "patch": ("jepa.regularizers.std.weight=0",),
    "lewm": ("jepa.regularizers.sigreg.weight=0",),
    "recipes/pr1330": (),
}


@pytest.mark.parametrize("name", PER_SEQUENCE)
def test_accumulating_is_the_joint_batch(build, name):
    """Each micro-batch must compute its own target."""
    task = build(f"objective={name}", *PER_SEQUENCE[name])
    noise(task)
    batch = random_batch(rows=8)
    joint = gradients(auxiliary(task, batch), task.parameters())
    parts = [{k: v[2 * i : 2 * i + 2] for k, v in batch.items()} for i in range(4)]
    micro = [
        gradients(auxiliary(task, part, at(micro_batch=i)) / 4, task.parameters())
        for i, part in enumerate(parts)
    ]
    for i, want in enumerate(joint):
        torch.testing.assert_close(sum(g[i] for g in micro), want, rtol=1e-4, atol=1e-7)


def test_a_target_kept_from_the_first_micro_batch_would_show(build):
    """Planted bug: the first micro-batch's target is reused for the others."""
    task = build("objective=llm_jepa")
    noise(task)
    batch = random_batch(rows=8)
    joint = norm(gradients(auxiliary(task, batch), task.parameters()))
    target, kept = task.objective.target, []
    forward = target.forward

    def once(*args):
        kept[:] = kept or [forward(*args)]
        return kept[0]

    target.forward = once
    total = [torch.zeros_like(p) for p in task.parameters()]
    for i in range(4):
        part = {k: v[2 * i : 2 * i + 2] for k, v in batch.items()}
        micro = gradients(auxiliary(task, part) / 4, task.parameters())
        total = [a + b for a, b in zip(total, micro, strict=True)]
    assert norm(total) != pytest.approx(joint.item(), rel=1e-3)


def test_reach_stops_the_objective_below_the_last_blocks(build):
    batch = random_batch()
    full = build("objective=lewm")
    noise(full)
    grads = {}
    for reach in ("null", "3", "2", "0"):
        task = build("objective=lewm", f"jepa.reach={reach}")
        task.load_state_dict(full.state_dict())
        names = [n for n, _ in task.named_parameters()]
        loss = auxiliary(task, batch)
        grads[reach] = dict(zip(names, gradients(loss, task.parameters()), strict=True))
        assert loss.item() == pytest.approx(auxiliary(full, batch).item(), rel=1e-5)

    def reached(reach: str) -> set[str]:
        return {n.split(".")[3] for n, g in grads[reach].items() if "blocks" in n and g.any()}

    assert reached("null") == reached("3") == {"0", "1", "2"}
    assert reached("2") == {"1", "2"}
    assert reached("0") == set()
    assert not grads["3"]["model.embedding.table.weight"].any()
    name = "model.backbone.blocks.2.mlp.up.weight"
    torch.testing.assert_close(grads["2"][name], grads["null"][name], rtol=1e-4, atol=1e-7)
    assert grads["0"]["objective.projector.linear.weight"].any()


def test_reach_works_for_other_views_too(build):
    task = build("objective=vicreg", "data.seq_len=64", "jepa.reach=1")
    noise(task)
    assert task.frozen == ["objective.context.view.vector"]  # no gradient reaches it
    auxiliary(task, random_batch(length=64)).backward()
    blocks = task.model.backbone.blocks
    assert blocks[2].mlp.up.weight.grad.any()
    assert blocks[1].mlp.up.weight.grad is None


@pytest.mark.parametrize(
    "words",
    [
        ("objective=nextlat",),
        ("objective=patch", "jepa.target.stop_gradient=false"),
        ("objective=lewm", "model/value_embedding=shared", "model.value_embedding.layers=[1,2]"),
    ],
)
def test_reach_leaves_the_token_table_alone_where_it_is_read_directly(build, words):
    task = build(*words, "jepa.reach=1")
    noise(task)
    auxiliary(task, random_batch()).backward()
    assert task.model.backbone.blocks[2].mlp.up.weight.grad.any()
    tables = [
        n for n, p in task.model.named_parameters() if "embedding" in n and p.grad is not None
    ]
    assert tables == []


def test_a_context_without_gradient_leaves_the_trunk_to_cross_entropy(build):
    stops = ("+jepa.context.stop_gradient=true", "jepa.target.stop_gradient=true")
    for name in ("lewm", "vicreg"):  # from the main pass, and from one of its own
        task = build(f"objective={name}", "data.seq_len=64", *stops)
        noise(task)
        auxiliary(task, random_batch(length=64)).backward()
        assert task.objective.predictor is not None
        assert any(p.grad is not None for p in task.objective.predictor.parameters())
        assert all(p.grad is None for p in task.model.parameters())


# ---- causality


def test_the_reach_table_shows_a_detached_trunk(build):
    chunk, lewm, patch = (build(f"objective={n}") for n in ("chunk", "lewm", "patch"))
    table = reach_table(chunk.model, chunk.objective, 32, [])
    assert table["prediction"]["model.injector"] > 0
    assert all(v == 0 for k, v in table["prediction"].items() if k != "model.injector")
    table = reach_table(lewm.model, lewm.objective, 32, [])
    assert all(v > 0 for v in table["prediction"].values())
    assert table["ce"]["objective.projector"] == 0
    table = reach_table(patch.model, patch.objective, 32, [])
    assert table["std"]["model.backbone.blocks.0"] > 0  # the hinge may be satisfied at the moment
    frozen = build("objective=patch", ZERO, FROZEN)
    table = reach_table(frozen.model, frozen.objective, 32, frozen.frozen)
    assert all(v == 0 for v in table["prediction"].values())


def test_a_zero_output_does_not_hide_the_trunk(build):
    """The predictor starts at zero; the table is measured on a copy with other values."""
    task = build("objective=vicreg", "data.seq_len=64", "jepa.predictor.residual=false")
    before = {n: p.clone() for n, p in task.named_parameters()}
    table = reach_table(task.model, task.objective, 64, [])
    assert table["prediction"]["objective.context"] > 0
    assert table["prediction"]["model.backbone.blocks.0"] > 0
    assert all(torch.equal(p, before[n]) for n, p in task.named_parameters())


# ---- mistakes


def test_main_pass_is_shared(build, monkeypatch):
    """An objective that needs no second forward pass adds none."""
    task = build("objective=lewm")
    calls = []
    resume = type(task.model).resume
    monkeypatch.setattr(type(task.model), "resume", lambda s, *a: calls.append(1) or resume(s, *a))
    compared(task, random_batch())
    assert len(calls) == 1
