"""FLOPs of a whole run: a loss counts while it is active."""

from __future__ import annotations

import pytest

from jepa_lm.artifact.teacher import opener
from jepa_lm.training.flops import flops_of, flops_of_run, flops_per_token
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.trusted import Trust
from tests.conftest import SMALL


def test_a_loss_counts_in_the_steps_in_which_it_is_active(compose):
    """A view is a pass of its own, here in the first half of a run."""
    fading = (
        "{_target_: jepa_lm.schedules.factors.Phased, points: [[0.0, 1.0], [0.5, 1.0], [0.5, 0.0]]}"
    )
    words = (*SMALL, "tokens=mir", "trainer.max_steps=40", f"tokens.schedule={fading}")
    config = resolve(compose("train", *words))
    counted = flops_per_token(LanguageModelTask(config))
    assert counted["objective"] >= counted["model"]
    expected = counted["model"] + counted["objective"] / 2
    assert flops_of(config, opener(Trust())) == pytest.approx(expected, rel=1e-6)


def test_a_run_that_has_ended_counts_its_own_steps(compose):
    """A loss that begins at half of the time: in half of the steps, or in none of a run cut short."""
    points = "[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0]]"
    late = f"{{_target_: jepa_lm.schedules.factors.Phased, over: time, points: {points}}}"
    words = (*SMALL, "tokens=mir", "trainer.max_steps=null", "trainer.max_time=100")
    task = LanguageModelTask(resolve(compose("train", *words, f"tokens.schedule={late}")))
    counted = flops_per_token(task)
    for steps, seconds, share in ((40, 100.0, 0.5), (20, 50.0, 0.0), (0, 0.0, 1.0)):
        task.clock.load_state_dict({"step": steps, "elapsed": seconds})
        found = flops_of_run(task, steps)
        assert found["model"] == counted["model"]
        assert found["objective"] == pytest.approx(share * counted["objective"], rel=1e-4, abs=2)


@pytest.mark.parametrize("steps", [100, 40_000])
def test_a_loss_of_every_second_step_counts_half(compose, steps):
    """However long the run: looking at every fortieth step would see it always, or never."""
    words = (*SMALL, "tokens=mir", f"trainer.max_steps={steps}")
    always = "{_target_: jepa_lm.schedules.factors.Constant, value: 1.0}"
    every = f"{{_target_: jepa_lm.schedules.factors.EveryNth, n: 2, schedule: {always}}}"
    config = resolve(compose("train", *words, f"tokens.schedule={every}"))
    counted = flops_per_token(LanguageModelTask(config))
    expected = counted["model"] + counted["objective"] / 2
    assert flops_of(config, opener(Trust())) == pytest.approx(expected, rel=0.02)
