"""Dropout: what it drops, whose draws it makes, and that no other pass sees it."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.model.dropout import draw_dropout
from jepa_lm.model.layers import rms_norm
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.auxiliary import KEPT, drawn, thinned
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import at, noise, random_batch
from tests.runs import Watch, fit, only_losses_differ

RATE = 0.25


def task_of(small, *overrides: str) -> LanguageModelTask:
    clock = ProgressClock(max_steps=6, max_time=None)
    task = LanguageModelTask(resolve(small(f"model.dropout={RATE}", *overrides)), clock)
    noise(task)
    return task


def test_draws_keep_the_rest_and_follow_the_seed():
    kept = draw_dropout(RATE, 4, (8, 32, 16), 3, torch.device("cpu"))
    assert kept.shape == (4, 2, 8, 32, 16)
    assert kept.float().mean().item() == pytest.approx(1 - RATE, abs=0.01)
    assert torch.equal(kept, draw_dropout(RATE, 4, (8, 32, 16), 3, torch.device("cpu")))
    assert not torch.equal(kept, draw_dropout(RATE, 4, (8, 32, 16), 4, torch.device("cpu")))
    flat = kept.flatten(2).float()
    assert torch.corrcoef(flat.flatten(0, 1)).fill_diagonal_(0).abs().max() < 0.06


def test_draws_follow_step_micro_batch_and_rank(small):
    model, batch = task_of(small).model, random_batch(rows=4)
    first = thinned(model, 7, batch, at(3))
    assert first["inputs"] is batch["inputs"]
    assert torch.equal(first[KEPT], thinned(model, 7, batch, at(3))[KEPT])
    for other in (at(4), at(3, micro_batch=1), at(3, rank=1, world_size=2)):
        assert not torch.equal(first[KEPT], thinned(model, 7, batch, other)[KEPT])
    model.dropout = 0.0
    assert thinned(model, 7, batch, at(3)) is batch


@pytest.mark.parametrize("name", ["transformer", "mamba2"])
def test_each_addition_to_the_residual_stream_is_dropped_and_scaled(small, name):
    model = task_of(small, f"model={name}").model
    batch = thinned(model, 7, random_batch(), at())
    kept, block = batch[KEPT], model.backbone.blocks[0]
    embedded = model.embed(batch["inputs"])
    x0 = embedded.x
    mixed = block.resid_mix[0] * x0 + block.resid_mix[1] * x0
    if name == "transformer":
        read = block.attention(rms_norm(mixed) * block.input_scale, None, None, None)
        x = mixed + block.attn_scale * (read * kept[0, 0] / (1 - RATE))
        x = x + block.mlp_scale * (
            block.mlp(rms_norm(x) * block.input_scale) * kept[0, 1] / (1 - RATE)
        )
    else:
        x = mixed + block.ssm_scale * (
            block.mixer(rms_norm(mixed, block.norm_eps))[0] * kept[0, 0] / (1 - RATE)
        )
        if block.mlp is not None:
            added = block.mlp(rms_norm(x, block.norm_eps)) * kept[0, 1] / (1 - RATE)
            x = x + block.mlp_scale * added
    found = model.encode(embedded, (0,), None, kept)
    torch.testing.assert_close(found.taps[0], x)
    assert not torch.allclose(found.taps[0], model.encode(embedded, (0,)).taps[0])
    whole = model.encode(embedded, (), 1, kept)
    assert torch.equal(model.resume(embedded, whole.carry).final, whole.final)


@pytest.mark.parametrize(
    ("objective", "model"), [("vicreg", "transformer"), ("chunk_loss_only", "transformer")]
)
def test_weight_0_stays_none_bit_for_bit(small, objective, model):
    """What an objective draws and how many passes it takes must not move the trunk's draws."""
    common = (f"model={model}", "model.dropout=0.2", "trainer.max_steps=4")
    watches = {}
    for chosen in ("objective=none", f"objective={objective} jepa.weight=0"):
        watch = Watch()
        task = fit(small(*common, *chosen.split()), watch)
        watches[chosen] = (
            watch.losses,
            task.scores["shipped"],
            {n: p for n, p in task.model.state_dict().items() if not n.startswith("injector")},
        )
    (losses, score, weights), (other, same, theirs) = watches.values()
    assert losses == other
    assert score.nll == same.nll
    assert all(torch.equal(weights[n], theirs[n]) for n in weights)


class Noised(Watch):
    """Gives every parameter a value, since what blocks add starts at zero."""

    def on_train_start(self, trainer, task):
        noise(task)


def test_only_training_drops(small):
    """With weights that never change, losses of training differ and the score of validation does not."""
    only_losses_differ(small, ("model.dropout=0", "model.dropout=0.5"), Noised)


def test_a_view_and_a_moving_average_read_whole_passes(small):
    task = task_of(small, "objective=vicreg")
    batch = random_batch()
    step_context = drawn(task.auxiliaries, frozenset(["jepa"]), batch, at())
    carries = []
    run = task.model.backbone.forward
    task.model.backbone.forward = lambda carry, *a, **k: (
        carries.append(carry) or run(carry, *a, **k)
    )
    task._losses(thinned(task.model, 7, batch, at()), step_context)
    dropping = [carry.dropout is not None for carry in carries]
    assert any(dropping)
    assert not all(dropping)


@pytest.mark.slow
def test_a_compiled_loss_drops_the_same(small):
    torch._dynamo.reset()
    task = task_of(small, "objective=vicreg")
    batch = thinned(task.model, 7, random_batch(), at())
    step_context = drawn(task.auxiliaries, frozenset(["jepa"]), batch, at())
    compiled = torch.compile(task._losses, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(batch, step_context)[0], task._losses(batch, step_context)[0]
    )


def test_a_rate_of_one_is_refused(small):
    with pytest.raises(UserError, match=r"model\.dropout=1"):
        task_of(small, "model.dropout=1")
