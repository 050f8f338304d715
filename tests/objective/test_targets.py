"""Target sources, mainly the copies that follow by a moving average, which must stay in float32."""

from __future__ import annotations

import copy

import pytest
import torch

from jepa_lm.model.ema import as_buffers
from jepa_lm.objective.normalisations import LayerNorm
from jepa_lm.objective.passes import MainPass
from jepa_lm.objective.targets import SamePass
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import at, auxiliary, compared, noise, random_batch


def followed(task) -> dict[str, torch.Tensor]:
    return {n: b for n, b in task.objective.target.named_buffers() if not n.startswith("view")}


def test_a_copy_starts_equal_and_follows_by_the_momentum(build):
    task = build("objective=vicreg", "data.seq_len=64")
    target, model = task.objective.target, task.model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    encoder = dict(target.encoder.named_buffers())
    assert all(torch.equal(encoder[n], before[n]) for n in encoder if n in before)
    noise(model)
    task.objective.after_step(model, at(50).clock)  # half way: momentum 0.9495
    for name, p in model.named_parameters():
        if name in encoder:
            want = 0.9495 * before[name] + 0.0505 * p.detach()
            torch.testing.assert_close(encoder[name], want)


def test_a_copied_projector_follows_beside_the_encoder_and_neither_at_weight_zero(build):
    for weight in (1.0, 0.0):
        task = build("objective=recipes/pr1330", f"jepa.weight={weight}", "+jepa/projector=linear")
        before = {n: b.clone() for n, b in followed(task).items()}
        noise(task)
        task.objective.after_step(task.model, at(50).clock)
        moved = {n for n, b in followed(task).items() if not torch.equal(b, before[n])}
        sides = {name.split(".")[0] for name in moved}
        assert sides == ({"encoder", "projector"} if weight else set())


def test_a_target_of_its_own_width_is_normalised_and_not_projected():
    double, hidden = torch.nn.Linear(6, 6), torch.randn(2, 5, 6)
    main = MainPass(batch={}, encoded=None, step_context=at(), reach=None)
    for project in (True, False):
        target = SamePass(normalisation=LayerNorm(), project=project)
        target.hidden = lambda model, main: hidden
        want = double(hidden) if project else hidden
        torch.testing.assert_close(
            target(None, main, double), torch.nn.functional.layer_norm(want, (6,))
        )


def test_a_copy_is_no_parameter_and_travels_in_checkpoints(build):
    task = build("objective=vicreg", "data.seq_len=64")
    names = {n for n, _ in task.objective.target.named_parameters()}
    assert not names
    stored = [n for n in task.state_dict() if n.startswith("objective.target.encoder.")]
    assert "objective.target.encoder.embedding.table.weight" in stored
    assert not any(".head." in n for n in stored)  # modules that never run are not kept


@pytest.mark.parametrize(
    ("recipe", "has", "has_not"),
    [
        ("recipes/pr1330", "encoder.embedding.table.weight", "projector"),
        ("recipes/pr896", "encoder.backbone.skip_weights", "encoder.embedding.table.weight"),
        ("recipes/pr1006", "projector.up.weight", "encoder."),
    ],
)
def test_each_part_copies_what_it_names(build, recipe, has, has_not):
    names = followed(build(f"objective={recipe}"))
    assert has in names
    assert not any(n.startswith(has_not) for n in names)


@pytest.mark.parametrize("recipe", ["vicreg", "recipes/pr896", "recipes/pr1006"])
def test_targets_come_from_the_copy(build, recipe):
    """Moving the online weights leaves targets as they are; moving the copy moves them."""
    task = build(f"objective={recipe}", "data.seq_len=64")
    noise(task)
    batch = random_batch(length=64)
    first = compared(task, batch)[0].pairs[0].target
    for buffer in followed(task).values():
        buffer.add_(0.1)
    assert not torch.allclose(compared(task, batch)[0].pairs[0].target, first)
    for buffer in followed(task).values():
        buffer.sub_(0.1)
    if recipe == "vicreg":
        noise(task.model, seed=3)
        torch.testing.assert_close(
            compared(task, batch)[0].pairs[0].target, first, rtol=1e-3, atol=1e-4
        )


def test_distance_is_relative(build):
    task = build("objective=recipes/pr1330")
    objective = task.objective
    assert objective.target.distance(task.model, objective.projector).item() == 0
    encoder = objective.target.encoder
    for b in encoder.buffers():
        b.mul_(1.1)
    got = objective.target.distance(task.model, objective.projector).item()
    assert got == pytest.approx(0.1, rel=1e-3)


# ---- copies in float32


def mean_gap_closed(dtype: torch.dtype, momentum: float, steps: int = 2000) -> float:
    """Return how much of the distance to a fixed online weight a copy of this type covers."""
    online = torch.nn.Linear(8, 8)
    twin = as_buffers(copy.deepcopy(online))
    start = twin.weight.clone()
    with torch.no_grad():
        online.weight += 1.0
        kept = twin.weight.to(dtype)
        for _ in range(steps):
            kept = torch.lerp(kept, online.weight.to(dtype), 1 - momentum)
    return ((kept.float() - start) / (online.weight.detach() - start)).mean().item()


def test_a_copy_in_bfloat16_would_stall():
    """Planted bug, and the reason why copies are float32."""
    assert mean_gap_closed(torch.float32, 0.999) == pytest.approx(0.865, abs=0.01)
    assert mean_gap_closed(torch.bfloat16, 0.999) < 0.6
    assert mean_gap_closed(torch.bfloat16, 0.9999) < 0.1


def test_a_copy_stays_in_float32_and_moves_even_when_the_model_is_bfloat16(build):
    task = build(
        "objective=recipes/pr1330",
        "jepa.target.momentum.start=0.9999",
        "jepa.target.momentum.end=0.9999",
    )
    task.to(torch.bfloat16)
    copies = followed(task)
    assert {b.dtype for b in copies.values()} == {torch.float32}
    before = {n: b.clone() for n, b in copies.items()}
    noise(task.model, std=1.0)
    for _ in range(20):
        task.objective.after_step(task.model, at().clock)
    name = "encoder.backbone.blocks.0.mlp.up.weight"
    assert not torch.equal(followed(task)[name], before[name])


# ---- gradients


@pytest.mark.parametrize(
    ("objective", "detached"),
    [("llm_jepa", True), ("patch", True), ("recipes/pr2142", True), ("lewm", False)],
)
def test_stop_gradient_is_what_the_setting_says(build, objective, detached):
    task = build(f"objective={objective}")
    noise(task)
    latents, _, _ = compared(task, random_batch())
    held = latents.normed[0][1]
    assert held.requires_grad is not detached


def test_embedding_targets_can_be_trained_on_request(build):
    task = build("objective=patch", "jepa.target.stop_gradient=false")
    noise(task)
    grads = []
    for stop in (True, False):
        task.objective.target.stop_gradient = stop
        loss = auxiliary(task, random_batch())
        grads.append(torch.autograd.grad(loss, task.model.embedding.table.weight)[0])
    assert not torch.allclose(grads[0], grads[1])


def test_a_copy_of_a_projector_needs_a_projector(build):
    with pytest.raises(UserError, match=r"jepa\.projector is null"):
        build("objective=recipes/pr1330", "jepa.target.part=projector")


def test_unknown_parts_are_refused(build):
    with pytest.raises(UserError, match=r"jepa\.target.part=head"):
        build("objective=vicreg", "jepa.target.part=head")
