"""Noise on the inputs of the main pass: where it is, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.auxiliary import READ, input_noise, noised
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from tests.objective.conftest import at, random_batch
from tests.runs import only_losses_differ


def noise_of(rate: float):
    return input_noise({"data": {"noise": rate, "seed": 7}, "model": {"vocab_size": 400}})


def test_a_share_of_the_inputs_is_replaced_and_nothing_else():
    batch = random_batch(rows=64)
    found = noised(noise_of(0.15), batch, at())
    changed = found[READ] != batch["inputs"]
    assert changed.float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert found["inputs"] is batch["inputs"]
    assert found["targets"] is batch["targets"]
    assert noised(None, batch, at()) is batch
    assert noise_of(0.0) is None


def test_draws_follow_step_micro_batch_and_rank():
    """So a resumed run repeats them, and ranks noise the rows of the joint batch."""
    noise, batch = noise_of(0.5), random_batch(rows=4)
    joint = noised(noise, batch, at(3))[READ]
    assert torch.equal(joint, noised(noise, batch, at(3))[READ])
    assert not torch.equal(joint, noised(noise, batch, at(4))[READ])
    assert not torch.equal(joint, noised(noise, batch, at(3, micro_batch=1))[READ])
    for rank in (0, 1):
        mine = {name: rows[2 * rank : 2 * rank + 2] for name, rows in batch.items()}
        assert torch.equal(
            noised(noise, mine, at(3, rank=rank, world_size=2))[READ],
            joint[2 * rank : 2 * rank + 2],
        )


def test_the_main_pass_reads_the_noised_tokens_and_views_the_text(small):
    clock = ProgressClock(max_steps=6, max_time=None)
    task = LanguageModelTask(resolve(small("objective=mir", "data.noise=0.5")), clock)
    batch, seen, embed = random_batch(), [], task.model.embed
    task.model.embed = lambda inputs, *more: seen.append(inputs) or embed(inputs, *more)
    found = noised(task.noise, batch, at())
    task._losses(found, task.tokens.draw(batch["inputs"], at()))
    assert torch.equal(seen[0], found[READ])
    assert torch.equal(seen[1], batch["inputs"])
    assert len(seen) == 2


def test_only_training_reads_noise(small):
    """With weights that never change, the losses of training differ and the score of validation does not."""
    only_losses_differ(small, ("data.noise=0", "data.noise=0.5"))
