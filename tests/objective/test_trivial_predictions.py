"""What the monitor compares an objective with: trivial predictions, and the gradient of cross entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.objective.diagnostics import prediction_quality
from jepa_lm.objective.gradients import compare_gradients
from jepa_lm.objective.latent_monitor import LatentMonitor
from jepa_lm.objective.token_monitor import TokenMonitor
from tests.objective.conftest import at, noise, random_batch


def test_predicting_the_mean_explains_nothing_however_far_it_is_from_zero():
    draw = torch.Generator().manual_seed(0)
    target = 5 + torch.randn(200, 4, generator=draw) * torch.tensor([0.1, 1.0, 2.0, 3.0])
    guess = target + torch.randn(200, 4, generator=draw)
    mean = target.mean(0).expand_as(target)
    of = {"mean": mean, "target": target, "zero": torch.zeros_like(target), "guess": guess}
    found = {name: prediction_quality(x, target, mean) for name, x in of.items()}
    spread = (target - mean).square().sum()
    for name, x in of.items():
        explained = 1 - (x - target).square().sum() / spread
        torch.testing.assert_close(found[name]["r2"], explained, rtol=1e-4, atol=1e-5)
        cosine = (F.normalize(x, dim=-1) * F.normalize(target, dim=-1)).sum(-1).mean()
        torch.testing.assert_close(found[name]["cosine"], cosine)
        assert found[name]["r2_of_copy"].item() == pytest.approx(0, abs=1e-5)
        assert found[name]["cosine_of_mean"] == found["mean"]["cosine"]
    assert found["target"]["r2"] == 1
    assert found["zero"]["r2"] < -3


def test_share_and_cosine_are_those_of_all_values_as_one_vector():
    draw = torch.Generator().manual_seed(0)
    ce, aux = ([torch.randn(*s, generator=draw) for s in ((3, 4), (5,))] for _ in range(2))
    one, other = (torch.cat([g.flatten() for g in side]) for side in (ce, aux))
    found = compare_gradients(ce, aux)
    share = other.norm() / (one.norm() + other.norm())
    torch.testing.assert_close(found["gradient_share"], share)
    torch.testing.assert_close(found["gradient_cosine"], F.cosine_similarity(one, other, dim=0))


def plain_share(ce: torch.Tensor, aux: torch.Tensor, part: torch.nn.Module) -> float:
    """Return the share of the second loss in the sum of both gradients' norms."""
    norms = []
    for loss in (ce, aux):
        grads = torch.autograd.grad(
            loss, list(part.parameters()), retain_graph=True, allow_unused=True
        )
        norms.append(torch.cat([g.flatten() for g in grads if g is not None]).norm().item())
    return norms[1] / sum(norms)


RAMP = "{_target_: jepa_lm.schedules.factors.Ramp, steps: 100}"
MOMENTS = pytest.mark.parametrize(
    ("step", "factor"), [(100, 1.0), (25, 0.25), (0, 1.0)], ids=["full", "ramp", "off"]
)
"""Steps of a ramp that gives 0 at step 0: there a share is that of the full weight."""


@MOMENTS
def test_the_share_is_that_of_the_weight_and_its_schedule(build, step, factor):
    words = ("jepa.weight=0.4", f"jepa.schedule={RAMP}", "jepa.diagnostics.per_layer=true")
    task = build("objective=vicreg", "data.seq_len=64", *words)
    noise(task)
    model, objective = task.model, task.objective
    batch, moment = random_batch(length=64), at(step, max_steps=1000)
    monitor = LatentMonitor(objective)
    monitor.measure(model, batch, moment, step=step, ce_weight=1.0)
    logits, main = model(batch["inputs"], *objective.main_needs(model))
    ce = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    aux = objective(model, batch, main, moment)
    for name, part in (("trunk", model.backbone), ("block_1", model.backbone.blocks[1])):
        want = plain_share(ce, 0.4 * factor * aux, part)
        assert monitor.figures[f"{name}_gradient_share"] == pytest.approx(want, rel=1e-4), name
    assert monitor.switched_off == (step == 0)


@MOMENTS
def test_the_share_of_a_loss_on_tokens_is_measured_alike(build, step, factor):
    task = build("objective=mtp", "tokens.weight=0.4", f"tokens.schedule={RAMP}")
    noise(task)
    model, batch, moment = task.model, random_batch(), at(step, max_steps=1000)
    monitor = TokenMonitor(task.tokens)
    monitor.measure(model, batch, moment, step=step, ce_weight=0.7)
    logits, main = model(batch["inputs"])
    ce = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    aux = task.tokens(model, batch, main, moment)
    want = plain_share(0.7 * ce, 0.4 * factor * aux, model.backbone)
    assert monitor.figures["trunk_gradient_share"] == pytest.approx(want, rel=1e-4)
    (said,) = monitor.in_words()
    assert said.startswith(
        f"the token objective {'would contribute' if step == 0 else 'contributes'}"
    )
    for state in (monitor.state_dict(), {**monitor.state_dict(), "low": {}, "raised": None}):
        assert TokenMonitor.is_state(state)  # of today, and as a former version kept it
        resumed = TokenMonitor(task.tokens)
        resumed.load_state_dict(state)
        assert resumed.in_words() == [said]
