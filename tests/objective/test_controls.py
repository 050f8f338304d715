"""The controls that a study compares an objective with: placebo, prediction only, regularizers only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jepa_lm.objective.placebo import other_rows
from jepa_lm.training.flops import count_parameters, flops_per_token
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import (
    SHALLOW,
    at,
    auxiliary,
    compared,
    every_but,
    noise,
    random_batch,
)

GUARDED = ("vicreg", "lewm", "chunk")


@pytest.mark.parametrize("name", every_but("stp", "stp_span"))
def test_the_placebo_differs_in_whose_target_it_is_alone(build, name):
    """Same parameters, FLOPs and form; every row is compared with the target of another row.

    That of stp keeps its own positions, see test_field_parts.py.
    """
    more = SHALLOW.get(name, ("model.backbone.layers=2",))
    real = build(f"objective={name}", *more)
    placebo = build(f"objective={name}", "jepa.placebo=true", *more)
    assert count_parameters(placebo) == count_parameters(real)
    assert flops_per_token(placebo) == flops_per_token(real)
    for task in (real, placebo):
        noise(task)
    step_context, batch = at(1, micro_batch=0), random_batch(rows=5)
    seen = []
    for task in (placebo, real):
        torch.manual_seed(0)  # for dropout
        seen.append(compared(task, batch, step_context))
    (with_it, _, logits), (without, _, same) = seen
    assert torch.equal(logits, same), "the trunk must not see the difference"
    rows = []
    for given, own in zip(with_it.pairs, without.pairs, strict=True):
        torch.testing.assert_close(given.prediction, own.prediction, rtol=0, atol=0)
        shift = [k for k in range(5) if torch.equal(given.target, own.target.roll(-k, dims=0))]
        assert shift
        assert 0 not in shift
        rows.append(shift[0])
    assert len(set(rows)) == 1


def test_the_placebo_draws_anew_for_each_micro_batch_and_the_same_after_a_resume(build):
    task = build("objective=llm_jepa", "jepa.placebo=true")
    noise(task)
    batch = random_batch(rows=16)

    def target(step, micro_batch=0):
        return compared(task, batch, at(step, micro_batch=micro_batch))[0].pairs[0].target

    assert torch.equal(target(3), target(3))
    drawn = [target(step, micro) for step in range(4) for micro in range(2)]
    assert len({t.sum(dim=(1, 2)).argmax().item() for t in drawn}) > 3


@pytest.mark.parametrize("rows", [2, 3, 4, 9, 16])
def test_the_other_row_is_far_away(rows):
    """A neighbour in the order of the text is often of the same document."""
    drawn = [other_rows(rows, at(step), torch.device("cpu"), "jepa")[0] for step in range(200)]
    apart = {int((order - torch.arange(rows))[0]) % rows for order in drawn}
    near = max(1, rows // 4)
    assert apart == set(range(near, rows - near + 1))
    for order in drawn[:20]:
        assert sorted(order.tolist()) == list(range(rows))
        assert not (order == torch.arange(rows)).any()


def test_the_other_row_is_of_another_document_where_there_is_one():
    """Two documents side by side; the shift by half of the rows is the only one that avoids both."""
    rows = 8
    document = torch.arange(rows) // 4
    related = document[:, None] == document
    for step in range(50):
        (order,) = other_rows(rows, replace(at(step), related=related), torch.device("cpu"), "jepa")
        assert order.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    one_document = torch.ones(rows, rows, dtype=torch.bool)
    unrelated = torch.eye(rows, dtype=torch.bool)
    for step in range(50):  # nothing to avoid, or no way to: the drawn shift
        (drawn,) = other_rows(rows, at(step), torch.device("cpu"), "jepa")
        for known in (one_document, unrelated):
            (order,) = other_rows(
                rows, replace(at(step), related=known), torch.device("cpu"), "jepa"
            )
            assert torch.equal(order, drawn)


@pytest.mark.slow
def test_a_placebo_cannot_be_predicted(build):
    """Each row repeats one random token, so its latents predict only its own targets."""
    last = {}
    for placebo in ("false", "true"):
        task = build("objective=patch", f"jepa.placebo={placebo}")
        optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
        draw = torch.Generator().manual_seed(0)
        losses = []
        for step in range(100):
            ids = torch.randint(400, (8, 1), generator=draw).expand(8, 32)
            latents, _, _ = compared(task, {"inputs": ids, "targets": ids}, at(step))
            loss = task.objective.losses_of(latents, at(step))["prediction"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        last[placebo] = sum(losses[-10:]) / 10
    assert last["false"] < 0.5 * last["true"], last


def test_a_placebo_needs_another_row(build):
    task = build("objective=patch", "jepa.placebo=true")
    with pytest.raises(UserError, match=r"jepa.placebo=true: .* at least two sequences"):
        auxiliary(task, random_batch(rows=1))


@pytest.mark.parametrize("name", GUARDED)
def test_regularizers_weight_scales_them_all(build, name):
    whole, half, none = (
        build(f"objective={name}", f"jepa.regularizers_weight={w}") for w in (1, 0.5, 0)
    )
    off = [f"jepa.regularizers.{r}.weight=0" for r in whole.config["jepa"]["regularizers"]]
    each = build(f"objective={name}", *off)
    for task in (whole, half, none, each):
        noise(task)
    batch, step_context = random_batch(), at(50)
    losses = [auxiliary(task, batch, step_context) for task in (whole, half, none, each)]
    torch.testing.assert_close(losses[1], (losses[0] + losses[2]) / 2)
    torch.testing.assert_close(losses[2], losses[3], rtol=0, atol=0)
    assert losses[0] != losses[2]


def test_every_weight_of_the_loss_is_that_of_its_setting_and_schedule(build):
    task = build(
        "objective=lewm",
        "jepa.prediction_weight=0.3",
        "jepa.regularizers_weight=0.5",
        "jepa.regularizers.sigreg.weight=4",
        "jepa.regularizers.sigreg.schedule={_target_: jepa_lm.schedules.factors.Ramp, steps: 10}",
    )
    noise(task)
    for step, sigreg in ((5, 1.0), (10, 2.0)):
        latents, _, _ = compared(task, random_batch(), at(step))
        parts = task.objective.losses_of(latents, at(step))
        want = 0.3 * parts["prediction"] + sigreg * parts["sigreg"]
        torch.testing.assert_close(task.objective.total(parts, at(step).clock), want)


def test_at_weight_zero_no_schedule_touches_the_cross_entropy(build):
    later = "jepa.ce_schedule={_target_: jepa_lm.schedules.factors.Ramp, steps: 10}"
    weights = [
        build("objective=lewm", later, f"jepa.weight={w}").objective.ce_scale(at(5).clock)
        for w in (1, 0)
    ]
    assert weights == [0.5, 1.0]


@pytest.mark.parametrize("name", GUARDED)
def test_regularizers_alone_need_a_regularizer(build, name):
    alone = build(f"objective={name}", "jepa.prediction_weight=0")
    noise(alone)
    assert auxiliary(alone, random_batch(), at(50)).item() != 0
    with pytest.raises(UserError, match="leaves nothing to train"):
        build(f"objective={name}", "jepa.prediction_weight=0", "jepa.regularizers_weight=0")
