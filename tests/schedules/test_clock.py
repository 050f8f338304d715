"""One clock drives every phase, under a step budget and under a wall-clock budget."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.optim.scheduler import ClockScheduler
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import (
    After,
    Constant,
    EveryNth,
    Linear,
    LogAnneal,
    Phased,
    Ramp,
    RandomSteps,
    Warmdown,
    Warmup,
)
from jepa_lm.utils.config import build
from jepa_lm.utils.errors import UserError


class Time:
    """A clock that a test sets by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(clock: ProgressClock, time: Time, seconds_per_step: float, schedule) -> list[float]:
    """Return the schedule's value before each step until the budget is used up."""
    values = []
    clock.start()
    while not clock.done:
        assert len(values) < 20_000, "the budget never ends"
        values.append(schedule(clock))
        time.now += seconds_per_step
        clock.advance()
    return values


@pytest.mark.parametrize("seconds_per_step", [0.1, 0.37, 2.0])
@pytest.mark.parametrize("limits", [(None, 60.0), (100, None), (100, 60.0), (10_000, 60.0)])
def test_every_phase_is_visited_whatever_the_budget(limits, seconds_per_step):
    time = Time()
    clock = ProgressClock(max_steps=limits[0], max_time=limits[1], now=time)
    values = run(clock, time, seconds_per_step, Warmdown(fraction=0.5, steps=None, end=0.0))
    assert values[0] == 1.0
    assert min(values) < 0.2  # the end of the warmdown is reached
    assert values == sorted(values, reverse=True)
    constant = sum(v == 1.0 for v in values) / len(values)
    assert constant == pytest.approx(0.5, abs=0.1)


def test_a_schedule_on_step_counts_alone_misses_its_phases():
    """Planted bug: 10,000 steps are planned, but the wall clock ends the run after 600."""
    time = Time()
    clock = ProgressClock(max_steps=10_000, max_time=60.0, now=time)
    values = run(clock, time, 0.1, lambda c: 1.0 if c.step < 5000 else 0.0)
    assert set(values) == {1.0}


def test_warmdown_in_steps_is_converted_at_the_measured_pace():
    time = Time()
    clock = ProgressClock(max_steps=None, max_time=60.0, now=time)
    values = run(clock, time, 0.1, Warmdown(fraction=None, steps=150, end=0.0))
    assert len(values) == pytest.approx(600, abs=1)
    assert sum(v < 1.0 for v in values) == pytest.approx(150, abs=2)


def test_warmdown_ends_where_it_should():
    clock = ProgressClock(max_steps=10, max_time=None)
    values = run(clock, Time(), 0.0, Warmdown(fraction=0.4, steps=None, end=0.1))
    assert values[5:] == pytest.approx([1.0, 1.0, 0.775, 0.55, 0.325])
    assert Warmdown(fraction=0.4, steps=None, end=0.1)(clock) == pytest.approx(0.1)


def test_warmup_counts_steps():
    clock = ProgressClock(max_steps=10, max_time=None)
    values = run(clock, Time(), 0.0, Warmup(start=0.85, end=0.95, steps=5))
    assert values[:7] == pytest.approx([0.85, 0.87, 0.89, 0.91, 0.93, 0.95, 0.95])


def test_time_counts_only_while_the_clock_runs():
    time = Time()
    clock = ProgressClock(max_steps=None, max_time=10.0, now=time)
    time.now += 50
    assert clock.elapsed == 0.0
    clock.start()
    time.now += 3
    clock.stop()
    time.now += 100  # time of a validation
    assert clock.elapsed == 3.0
    clock.start()
    time.now += 2
    assert clock.elapsed == 5.0
    assert clock.progress == 0.5


def test_state_continues_the_clock():
    time = Time()
    first = ProgressClock(max_steps=None, max_time=10.0, now=time)
    first.start()
    time.now += 4
    first.advance()
    second = ProgressClock(max_steps=None, max_time=10.0, now=time)
    second.load_state_dict(first.state_dict())
    second.start()
    time.now += 1
    assert second.elapsed == 5.0
    assert second.step == 1


def test_ranks_with_different_watches_agree_on_every_step():
    """Rank 1's watch runs 30 % fast; both ranks must see the same progress and stop together."""
    leader_time, follower_time = Time(), Time()
    told: list[float] = []

    def tell(value: float) -> float:
        told.append(value)
        return value

    leader = ProgressClock(max_steps=None, max_time=20.0, now=leader_time, exchange=tell)
    follower = ProgressClock(
        max_steps=None, max_time=20.0, now=follower_time, exchange=lambda _: told[-1]
    )
    leader.start()
    follower.start()
    for _ in range(10_000):
        leader_time.now += 0.1
        follower_time.now += 0.13
        leader.advance()
        follower.advance()
        assert leader.progress == follower.progress
        assert leader.done == follower.done
        if leader.done:
            break
    assert leader.done
    assert leader.step == pytest.approx(200, abs=10)
    assert len(told) <= leader.step / 10 + 6  # no exchange on the steps between


def test_scheduler_writes_lr_and_momentum_into_the_groups():
    p, q = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = MuonAdamW(
        [
            dict(params=[p], algorithm="muon", name="m", lr=0.02, momentum=0.5),
            dict(params=[q], algorithm="adamw", name="a", lr=0.1),
        ]
    )
    clock = ProgressClock(max_steps=10, max_time=None)
    scheduler = ClockScheduler(
        optimizer,
        clock=clock,
        lr=Warmdown(fraction=0.5, steps=None, end=0.0),
        muon_momentum=Warmup(start=0.8, end=0.9, steps=2),
    )
    muon, adamw = optimizer.param_groups
    assert (muon["lr"], muon["momentum"], adamw["lr"]) == (0.02, 0.8, 0.1)
    for _ in range(9):
        optimizer.step()
        clock.advance()
        scheduler.step()
    assert muon["lr"] == pytest.approx(0.02 * 0.2)
    assert adamw["lr"] == pytest.approx(0.1 * 0.2)
    assert muon["momentum"] == 0.9
    assert "momentum" not in adamw
    # Factors rise as well as fall.
    rising = ProgressClock(max_steps=10, max_time=None)
    scheduler_up = ClockScheduler(
        optimizer, clock=rising, lr=Warmup(start=0.1, end=1.0, steps=2), muon_momentum=None
    )
    before = scheduler_up.factor
    rising.step = 5
    scheduler_up.step()
    assert (before, scheduler_up.factor) == (0.1, 1.0)
    # A resumed run: the saved point of the schedule, with the rates of its own config.
    groups = [dict(params=[p], algorithm="muon", name="m", lr=0.05, momentum=0.5)]
    resumed = MuonAdamW(groups)
    factors = dict(lr=scheduler.lr, muon_momentum=scheduler.muon_momentum)
    ClockScheduler(
        resumed, clock=ProgressClock(max_steps=10, max_time=None), **factors
    ).load_state_dict(scheduler.state_dict())
    assert resumed.param_groups[0]["lr"] == pytest.approx(0.05 * 0.2)
    assert resumed.param_groups[0]["momentum"] == 0.9


def test_a_run_without_end_is_refused():
    with pytest.raises(UserError, match=r"trainer\.max_steps and trainer\.max_time"):
        ProgressClock(max_steps=None, max_time=None)
    with pytest.raises(
        UserError, match=r"^max_steps=0: expected a whole number of at least 1 or null"
    ):
        ProgressClock(max_steps=0, max_time=None)
    with pytest.raises(UserError, match=r"set one of them"):
        Warmdown(fraction=None, steps=None, end=0.0)


def test_phases_are_plain_values():
    assert Warmdown(fraction=0.4, steps=None, end=0.0).phases() == [
        {"constant": 1.0, "until": 0.6},
        {"linear_to": 0.0, "until": 1.0},
    ]
    assert Constant(value=2.0).phases() == [{"constant": 2.0}]


# ---- schedules of loss weights


def values(schedule, steps: int = 100, max_steps: int = 100) -> list[float]:
    clock = ProgressClock(max_steps=max_steps, max_time=None)
    found = []
    for _ in range(steps):
        found.append(schedule(clock))
        clock.advance()
    return found


def test_ramp_after_linear_and_anneal():
    assert values(Ramp(steps=4), 6) == [0, 0.25, 0.5, 0.75, 1, 1]
    assert values(After(steps=3), 5) == [0, 0, 0, 1, 1]
    assert values(Linear(start=0.9, end=0.999))[50] == pytest.approx(0.9495)
    annealed = values(LogAnneal(start=1.0, end=0.1), 101)
    assert annealed[0] == 1.0
    assert annealed[50] == pytest.approx(10**-0.5)
    assert annealed[100] == pytest.approx(0.1)


def test_phased_is_the_schedule_of_832():
    found = values(Phased(points=[[0.0, 0.0], [0.3, 0.0], [0.8, 1.0], [0.8, 0.0]]))
    assert found[:31] == [0.0] * 31
    assert found[55] == pytest.approx(0.5)
    assert found[79] == pytest.approx(0.98)
    assert found[80:] == [0.0] * 20


def test_phased_holds_its_ends_and_starts_where_it_says():
    schedule = Phased(points=[[0.1, 2.0], [0.2, 4.0]])
    found = values(schedule)
    assert found[:10] == [2.0] * 10
    assert found[15] == pytest.approx(3.0)
    assert found[20:] == [4.0] * 80
    assert values(Phased(points=[[0.5, 3.0]])) == [3.0] * 100


def test_every_nth_step():
    assert values(EveryNth(n=3, schedule=Constant(value=2.0)), 7) == [2, 0, 0, 2, 0, 0, 2]


def test_random_steps_drop_their_share_by_seed_and_step_alone():
    two = Constant(value=2.0)
    found = values(RandomSteps(dropped=0.75, seed=1, schedule=two), 4000)
    assert set(found) == {0.0, 2.0}
    assert found.count(2.0) / 4000 == pytest.approx(0.25, abs=0.03)
    again = RandomSteps(dropped=0.75, seed=1, schedule=two)
    assert values(again, 4000)[1000:] == found[1000:]
    assert values(RandomSteps(dropped=0.75, seed=2, schedule=two), 100) != found[:100]
    assert values(RandomSteps(dropped=0.0, seed=1, schedule=two), 100) == [2.0] * 100


@pytest.mark.parametrize("seconds_per_step", [0.05, 0.3])
def test_phases_are_visited_under_a_wall_clock_budget(seconds_per_step):
    """The schedule of a loss weight."""
    time = Time()
    clock = ProgressClock(max_steps=None, max_time=60.0, now=time)
    schedule = Phased(points=[[0.0, 0.0], [0.3, 0.0], [0.8, 1.0], [0.8, 0.0]])
    found = run(clock, time, seconds_per_step, schedule)
    assert found[0] == found[-1] == 0
    assert max(found) > 0.9


@pytest.mark.parametrize("schedule", [Linear(start=0.9, end=0.2), LogAnneal(start=0.9, end=0.2)])
def test_lines_reach_their_end_when_the_wall_clock_comes_first(schedule):
    """The momentum of a moving average."""
    time = Time()
    clock = ProgressClock(max_steps=10_000, max_time=60.0, now=time)
    assert run(clock, time, 0.1, schedule)[-1] == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ramp(steps=0), "steps=0: expected a whole number of at least 1"),
        (lambda: Phased(points=[]), "points="),
        (lambda: Phased(points=[[0.5, 1.0], [0.2, 0.0]]), "points="),
        (lambda: Phased(points=[[0.5]]), "points="),
        (lambda: Phased(points=[[0, 0.0], [30, 1.0]]), "points="),  # percent
        (lambda: LogAnneal(start=0.0, end=1.0), r"start=0\.0: expected a number above 0"),
        (lambda: RandomSteps(dropped=1.0, seed=0, schedule=Constant(value=1.0)), "dropped="),
        (lambda: EveryNth(n=0, schedule=Constant(value=1.0)), "n=0: expected a whole number of at"),
    ],
)
def test_schedules_refuse_what_makes_no_sense(make, words):
    with pytest.raises(UserError, match=f"^{words}"):
        make()


@pytest.mark.parametrize(
    "place", ["optimizer.schedule.lr", "jepa.schedule", "jepa.target.momentum"]
)
@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "Warmdown",
            dict(fraction=0.5, steps=3, end=0.0),
            "fraction=0.5, steps=3: set one of them",
        ),
        ("Phased", dict(points=[[0.5, 1.0], [0.2, 0.0]]), "points=[[0.5, 1.0], [0.2, 0.0]]: needs"),
    ],
)
def test_what_a_schedule_refuses_is_named_where_it_stands(place, name, settings, said):
    node = {"_target_": f"jepa_lm.schedules.factors.{name}", **settings}
    with pytest.raises(UserError) as error:
        build(place, node)
    assert str(error.value).startswith(f"{place}.{said}")


SHAPES = {
    "warmdown": lambda over: Warmdown(fraction=0.5, steps=None, end=0.0, over=over),
    "warmdown of steps": lambda over: Warmdown(fraction=None, steps=40, end=0.0, over=over),
    "points": lambda over: Phased(points=[[0.0, 0.0], [1.0, 1.0]], over=over),
    "line": lambda over: Linear(start=0.0, end=1.0, over=over),
    "logarithm": lambda over: LogAnneal(start=0.1, end=1.0, over=over),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_over_one_limit_a_schedule_is_that_of_a_run_with_that_limit_alone(shape):
    """100 steps in 60 of 90 seconds: the step limit ends the run, two thirds through its time."""

    def values(over, max_steps, max_time):
        time = Time()
        clock, found = ProgressClock(max_steps=max_steps, max_time=max_time, now=time), []
        clock.start()
        for _ in range(100):
            found.append(SHAPES[shape](over)(clock))
            time.now += 0.6
            clock.advance()
        return pytest.approx(found)

    assert values("steps", 100, 90.0) == values("budget", 100, None).expected
    assert values("time", 100, 90.0) == values("budget", None, 90.0).expected
    assert values("budget", 100, 90.0) == values("steps", 100, 90.0).expected
    # If the run lacks the limit that a schedule follows, the other limit applies.
    assert values("time", 100, None) == values("budget", 100, None).expected
    assert values("steps", None, 90.0) == values("budget", None, 90.0).expected
    assert values("time", 100, 90.0) != values("steps", 100, 90.0).expected


def test_an_unknown_limit_is_named():
    with pytest.raises(UserError, match="over=tokens: expected one of budget, steps, time"):
        Linear(start=0.0, end=1.0, over="tokens")
