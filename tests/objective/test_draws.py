"""Random draws: shared by all ranks or drawn by each rank, and where each applies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jepa_lm.objective import auxiliary_loss, sigreg, token_prediction, views
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import at, auxiliary, compared, random_batch

RANKS = [dict(rank=r, world_size=3) for r in range(3)]


def numbers(purpose: str = "context", step: int = 0, **more) -> list[float]:
    generator = at(step, **more).generator(0, purpose)
    return torch.rand(4, generator=generator).tolist()


def test_ranks_share_their_draws_unless_each_has_its_own():
    assert len({tuple(numbers(**rank)) for rank in RANKS}) == 1
    assert len({tuple(numbers(**rank, per_rank=True)) for rank in RANKS}) == 3
    assert numbers(**RANKS[0], per_rank=True) == numbers()


def test_own_draws_are_a_function_of_seed_step_micro_batch_purpose_and_rank():
    mine = dict(**RANKS[2], per_rank=True)
    first = numbers(**mine)
    assert first == numbers(**mine)  # so a resumed run repeats them
    assert first != numbers(step=1, **mine)
    assert first != numbers(micro_batch=1, **mine)
    assert first != numbers("target", **mine)


def masked_by_rank(task) -> list[list[int]]:
    batch, view = random_batch(length=64), task.objective.context.view
    found = []

    def seen(inputs, step_context, purpose):
        result = type(view).forward(view, inputs, step_context, purpose)
        found.append(result.positions.tolist())
        return result

    view.forward = seen
    for rank in RANKS:
        compared(task, batch, at(**rank))
    return found


@pytest.mark.parametrize(("draws", "different"), [("shared", 1), ("per_rank", 3)])
def test_spans_follow_the_setting(build, draws, different):
    task = build("objective=vicreg", "data.seq_len=64", f"jepa.draws={draws}")
    assert len({tuple(m) for m in masked_by_rank(task)}) == different


def test_replaced_tokens_are_those_of_the_joint_batch_or_of_the_rank(build):
    view = build("objective=recipes/pr1116").objective.context.view
    rows = torch.zeros(2, 32, dtype=torch.long)
    step_context = at()
    joint = view(torch.zeros(6, 32, dtype=torch.long), step_context, "context").inputs
    own = []
    for r, rank in enumerate(RANKS):
        shared = replace(step_context, **rank)
        assert torch.equal(view(rows, shared, "context").inputs, joint[2 * r : 2 * r + 2])
        own.append(view(rows, replace(shared, per_rank=True), "context").inputs)
    assert len({tuple(x.flatten().tolist()) for x in own}) == 3


@pytest.mark.parametrize("global_statistics", [False, True])
def test_the_draws_of_a_joint_statistic_stay_shared(build, monkeypatch, global_statistics):
    task = build(
        "objective=lewm",
        "jepa.draws=per_rank",
        f"jepa.global_statistics={global_statistics}".lower(),
        "jepa.regularizers.sigreg.fresh=true",
    )
    objective, seen = task.objective, []
    part = objective.regularizers["sigreg"]
    monkeypatch.setattr(
        part, "forward", lambda x, step_context: seen.append(step_context) or x.sum()
    )
    for rank in RANKS:
        latents, _, _ = compared(task, random_batch(), at(**rank))
        objective.losses_of(latents, at(**rank))
    drawn = {tuple(torch.rand(4, generator=m.generator(0, "x")).tolist()) for m in seen}
    assert len(drawn) == (1 if global_statistics else 3)
    assert [m.joint for m in seen] == [global_statistics] * 3


def test_one_process_has_nothing_to_join(build, monkeypatch):
    task = build("objective=lewm", "jepa.global_statistics=true")
    seen = []
    part = task.objective.regularizers["sigreg"]
    monkeypatch.setattr(
        part, "forward", lambda x, step_context: seen.append(step_context) or x.sum()
    )
    latents, _, _ = compared(task, random_batch())
    task.objective.losses_of(latents, at())
    assert not seen[0].joint


def test_an_unknown_way_to_draw_is_refused(build):
    with pytest.raises(UserError, match=r"jepa\.draws=each: expected one of shared, per_rank"):
        build("objective=vicreg", "jepa.draws=each")


def test_time_steps_that_ranks_do_not_share_are_refused(build):
    on_predictions = (
        "objective=vicreg",
        "jepa.draws=per_rank",
        "+jepa.regularizers.steps={_target_: jepa_lm.objective.sigreg.SIGReg, tensor: prediction, "
        "weight: 1, dim: 64, directions: 8, knots: 17, low: 0.2, high: 4.0, window: true, "
        "per_step: true, max_steps: null, standardise: false, fresh: false, seed: 0}",
    )
    with pytest.raises(UserError, match=r"jepa\.draws=per_rank.*jepa\.regularizers\.steps"):
        build(*on_predictions, "jepa.global_statistics=true")
    build(*on_predictions)
    build(*on_predictions, "jepa.global_statistics=true", "jepa.regularizers.steps.tensor=context")


@pytest.mark.parametrize(
    "overrides",
    [
        ("objective=vicreg",),
        ("objective=recipes/pr1116",),
        ("objective=lewm", "jepa.placebo=true", "jepa.regularizers.sigreg.fresh=true"),
        ("objective=vicreg", "jepa.draws=per_rank"),
    ],
)
def test_draws_made_before_the_loss_are_those_made_within(build, monkeypatch, overrides):
    """All of them, so that a compiled loss has nothing left to draw."""
    task = build(*overrides, "data.seq_len=128")
    batch, step_context = random_batch(length=128), at(7, rank=1, world_size=2)
    within = auxiliary(task, batch, step_context)
    for module in (views, sigreg, auxiliary_loss):
        monkeypatch.setattr(module, "draw_now", lambda *a: pytest.fail("drawn within the loss"))
    before = auxiliary(task, batch, task.objective.draw(batch["inputs"], step_context))
    assert torch.equal(within, before)
    other = task.objective.draw(batch["inputs"], at(8, rank=1, world_size=2))
    assert not torch.equal(auxiliary(task, batch, other), before)


@pytest.mark.parametrize("order", [("jepa", "tokens"), ("tokens", "jepa")])
def test_draws_of_two_losses_stay_side_by_side(build, monkeypatch, order):
    words = ("objective=vicreg", "tokens=mir", "jepa.placebo=true", "tokens.placebo=true")
    task = build(*words, "data.seq_len=128")
    batch, step_context = random_batch(length=128), at(7, rank=1, world_size=2)
    main = task.model.encode(task.model.embed(batch["inputs"]), [0, 1, 2])
    losses = task.auxiliaries
    within = [losses[key](task.model, batch, main, step_context) for key in order]
    for key in order:
        step_context = losses[key].draw(batch["inputs"], step_context)
    for module in (views, sigreg, auxiliary_loss, token_prediction):
        monkeypatch.setattr(module, "draw_now", lambda *a: pytest.fail("drawn within the loss"))
    before = [losses[key](task.model, batch, main, step_context) for key in order]
    assert all(map(torch.equal, within, before))
