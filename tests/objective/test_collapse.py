"""Signs of collapse on planted latents, by the code that measures a run, and when they become an alarm."""

from __future__ import annotations

import math

import pytest
import torch

from jepa_lm.objective.alignment import Pair
from jepa_lm.objective.collapse import CollapseAlarm
from jepa_lm.objective.diagnostics import effective_rank, spread
from jepa_lm.objective.latent_monitor import LatentMonitor
from jepa_lm.objective.latents import Latents
from jepa_lm.utils.config import build as build_node
from jepa_lm.utils.config import resolve
from tests.objective.conftest import at, random_batch

ROWS, WIDTH, STEPS = 320, 64, 450
"""Latents of a measurement, and steps of a run: with a measurement every 100, there are four."""


def normal(seed: int, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(1, ROWS, width, generator=torch.Generator().manual_seed(seed))


def directions(left: int, noise: float = 0.0):
    """Latents in a subspace of this many directions, with a little of the others."""
    basis = torch.linalg.qr(normal(99)[0, :WIDTH])[0][:left]
    return lambda seed: normal(seed)[..., :left] @ basis + noise * normal(seed + 1000)


def spectrum(decay: float):
    """Latents whose singular values fall geometrically, along no axis."""
    basis = decay ** torch.arange(WIDTH)[:, None] * torch.linalg.qr(normal(99)[0, :WIDTH])[0]
    return lambda seed: normal(seed) @ basis


def dead(count: int):
    return lambda seed: normal(seed) * (torch.arange(WIDTH) >= count)


def scaled(scale: float):
    return lambda seed: scale * normal(seed)


def around(vector: float, share: float = 1.0):
    return lambda seed: share * normal(seed) + vector


HEALTHY = scaled(1.0)
COLLAPSES = {
    "identical": (around(1.0, 0.0), "one common vector"),
    "zero": (scaled(0.0), "one common vector"),
    "a common vector": (around(15.0), "one common vector"),
    "a huge common vector": (around(1e4), "one common vector"),
    "one direction": (directions(1), "one direction"),
    "two directions": (directions(2), "few directions"),
    "three directions": (directions(3), "few directions"),
    "eight directions": (directions(8), "few directions"),
    "eight directions and noise": (directions(8, 0.01), "few directions"),
    "31 of 64 dead": (dead(31), "no longer vary"),
    "2 % of the spread": (scaled(0.02), "lost most of the spread"),
    "2 % of the spread, off centre": (around(0.1, 0.02), "lost most of the spread"),
}
"""What latents come to in a healthy start, and what a warning says of them."""
SOUND = {
    "small": [scaled(0.01)] * 4,
    "large": [scaled(1e4)] * 4,
    "off centre": [around(5.0)] * 4,
    "a fall to rank 20": [HEALTHY, *[spectrum(0.87)] * 3],
    "growing": [scaled(s) for s in (1e-3, 1e-2, 0.1, 1.0)],
    "eight directions from the start": [directions(8)] * 4,
    "more and more directions": [directions(n) for n in (2, 3, 5, 9)],
    "a common vector that goes": [around(v) for v in (90.0, 70.0, 50.0, 35.0)],
    "one low reading": [HEALTHY, directions(1), HEALTHY, directions(1)],
}
"""Four measurements of latents that do not collapse."""


@pytest.fixture
def measured(build, monkeypatch):
    """measured(contexts, targets) measures planted latents every 100 steps and returns the monitor."""
    task = build("objective=lewm", "jepa.weight=0")
    batch = random_batch(rows=2, length=8)

    def run(contexts, targets, steps=STEPS) -> LatentMonitor:
        monitor = LatentMonitor(task.objective)
        for i, planted in enumerate(zip(contexts, targets, strict=True)):
            context, target = (made(2 * i + side) for side, made in enumerate(planted))
            pair = Pair(normal(i + 500), target, context, 1.0)
            latents = Latents([pair], [pair[:2]], context, task.model, task.model)
            monkeypatch.setattr(task.objective, "compare", lambda *_, found=latents: found)
            step = 100 * (i + 1)
            clock = at(step - 1, max_steps=steps)
            monitor.measure(task.model, batch, clock, step=step, ce_weight=1.0)
        return monitor

    return run


def test_every_collapse_of_either_side_is_told_within_a_short_run(measured):
    for name, (collapsed, says) in COLLAPSES.items():
        falls, stays = [HEALTHY, *[collapsed] * 3], [HEALTHY] * 4
        for side, sides in {"context": (falls, stays), "target": (stays, falls)}.items():
            monitor = measured(*sides)
            found = monitor.summary()["collapse"]
            assert found is not None, (name, side)
            assert (found["tensor"], found["step"]) == (side, 300), name
            assert says in found["kind"], name
            (warning,) = monitor.warnings
            assert found["kind"] in warning
            assert f"{found['figure']} is {found['value']:.3g}" in warning
            assert "collapsed by step 300" in " ".join(monitor.in_words())


def test_sound_latents_are_left_alone(measured):
    for name, made in SOUND.items():
        monitor = measured(made, made)
        assert monitor.warnings == [], name
        assert monitor.summary()["collapse"] is None


def test_a_sign_is_told_before_it_is_an_alarm(measured):
    words = measured([HEALTHY] * 2, [HEALTHY, scaled(0.02)]).in_words()
    (line,) = [line for line in words if "directions" in line]
    assert "a sign of collapse, the target latents have lost most of the spread" in line
    assert "0.00" not in line
    (line,) = [line for line in measured([HEALTHY], [HEALTHY]).in_words() if "directions" in line]
    assert line.endswith("no sign of collapse")


def test_figures_of_spread_are_those_of_a_plain_formula():
    """Of centred rows, and the same at any scale."""
    for width, centre in ((24, 0.0), (24, 100.0), (512, 3.0)):
        rows = normal(3, width)[0].double() * torch.linspace(0.001, 1, width) + centre
        centred = rows - rows.mean(0)
        singular = torch.linalg.svdvals(centred)
        share = singular / singular.sum()
        rank = math.exp(-sum(p * math.log(p) for p in share.tolist() if p > 1e-12))
        std = centred.square().mean(0).sqrt()
        expected = {
            "effective_rank": rank,
            "rank_share": rank / min(ROWS - 1, width),
            "relative_spread": (centred.norm() / rows.norm()).item(),
            "alive_share": (std > 0.05 * std.square().mean().sqrt()).double().mean().item(),
        }
        assert effective_rank(rows).item() == pytest.approx(rank, rel=1e-6)
        for scale in (1.0, 1e-3):
            found = spread(scale * rows)
            for name, value in expected.items():
                assert found[name].item() == pytest.approx(value, rel=1e-5), (name, width, scale)


def read_all(alarm: CollapseAlarm, readings, *, rows: int = 100, measurements: int | None = None):
    """Read (step, relative spread of both sides) one after the other; return the step of the alarm."""
    sound = {"effective_rank": 30.0, "rank_share": 0.5, "alive_share": 1.0, "std_rms": 1.0}
    for step, value in readings:
        figures = {
            f"{side}_{name}": number
            for side in ("context", "target")
            for name, number in {**sound, "relative_spread": value}.items()
        }
        alarm.read(step, figures, {"context": rows, "target": rows}, measurements)
    return None if alarm.raised is None else alarm.raised.step


@pytest.fixture
def settings(small):
    return build_node("jepa", resolve(small("objective=lewm"))["jepa"]["diagnostics"])


@pytest.mark.parametrize(
    ("readings", "more", "step"),
    [
        (((100, 0.01), (200, 0.01), (300, 0.01)), {}, 300),
        (((100, 0.01), (200, 0.01), (300, 0.5), (400, 0.01), (500, 0.01)), {}, None),
        (((100, 0.01), (200, 0.01), (400, 0.01), (500, 0.01)), {}, None),  # 300 was not measured
        (((100, 0.01), (200, 0.01), (300, math.nan), (400, 0.01), (500, 0.01)), {}, None),
        (((100, 0.01), (200, 0.01), (300, 0.01)), {"rows": 7}, None),
        (((100, 0.005), (200, 0.01), (300, 0.02), (400, 0.01)), {}, 400),  # falls again
        (((100, 1e-7), (200, 2e-7), (300, 4e-7)), {}, 300),  # rounding
        (((100, 0.01), (200, 0.01)), {"measurements": 4}, 200),
        (((100, 0.01), (200, 0.01)), {"measurements": 5}, None),
        (((100, 0.01),), {"measurements": 2}, 100),
        (((100, 0.01), (200, 0.01), (300, 0.01), (400, 0.01)), {"measurements": 9}, 400),
        (tuple((step, 0.01) for step in range(100, 700, 100)), {"measurements": 1000}, 600),
    ],
)
def test_an_alarm_takes_readings_in_a_row_after_the_beginning_and_half_the_budget_at_most(
    settings, readings, more, step
):
    assert read_all(CollapseAlarm(settings, "cause"), readings, **more) == step


def test_what_is_no_trained_latent_is_not_watched(build):
    """The injected prediction of chunk may have any spread, and a law or a teacher cannot collapse."""
    both = ("context", "target")
    for objective, watched in (
        ("chunk", ("target",)),
        ("oracle_law", ("context",)),
        ("vicreg", both),
    ):
        task = build(f"objective={objective}")
        assert LatentMonitor(task.objective).alarm.tensors == watched


def test_the_state_of_an_alarm_is_checked_and_a_former_one_is_read(settings):
    alarm = CollapseAlarm(settings, "cause")
    read_all(alarm, ((100, 0.5), (200, 0.01), (300, 0.01), (400, 0.01)))
    state = {"figures": {}, "warnings": [], **alarm.state_dict()}
    raised = {**state["raised"], "figure": "std_median"}
    former = {**state, "low": {"target_std_median": 2}, "raised": raised}
    del former["best"], former["step"]
    for kept in (state, former):
        assert LatentMonitor.is_state(kept)
        again = CollapseAlarm(settings, "cause")
        again.load_state_dict(kept)
        assert again.raised is not None
        assert again.raised.step == alarm.raised.step
    for wrong in (
        {"best": {"a": "b"}},
        {"low": {"a": 1}},
        {"low": {"a": ["b"]}},
        {"step": "b"},
        {"raised": {**state["raised"], "figure": 1}},
        {"raised": {**state["raised"], "value": "b"}},
    ):
        assert not LatentMonitor.is_state({**state, **wrong}), wrong
