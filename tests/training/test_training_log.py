"""Time that does not count: pauses within pauses, and ranks whose compilers take different times."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jepa_lm.training import agreement, training_log
from jepa_lm.training.training_log import TrainingLog


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(training_log, "time", clock)
    return clock


def test_a_pause_within_a_pause_counts_once(clock):
    log = TrainingLog()
    log.begin(0)
    clock.now = 10.0
    with log.pause():
        clock.now = 12.0
        with log.pause():
            clock.now = 17.0
        clock.now = 18.0
        assert log._now() == 10.0
    clock.now = 20.0
    assert log._now() == 12.0


def test_a_pause_that_failed_is_over(clock):
    log = TrainingLog()

    def fail():
        with log.pause():
            clock.now = 3.0
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    clock.now = 5.0
    assert log._now() == 2.0


@pytest.mark.parametrize(
    ("stood", "agreed"),
    [
        ((3.0, 3.0), 100.0),  # rank 0 stood still while it waited for the other's compiler
        ((3.0, 5.0), 98.0),  # it waited for 2 s in a step in which it compiled nothing
        ((5.0, 3.0), 100.0),
    ],
)
def test_waiting_for_another_compiler_is_no_training_time(monkeypatch, stood, agreed):
    """The clock of rank 0 shows 100 s."""
    rows: list[list[float]] = []

    def maximum(*mine, device):
        rows.append([float(value) for value in mine])
        return [max(column) for column in zip(*rows, strict=True)]

    monkeypatch.setattr(agreement, "maximum", maximum)
    for rank in (1, 0):
        task = SimpleNamespace(
            trainer=SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device="cpu")),
            global_rank=rank,
            guard=SimpleNamespace(first=lambda: None),
            compiler=SimpleNamespace(stood=stood[rank]),
            stop=SimpleNamespace(asked=0, agreed=0),
        )
        found = agreement.agree(task, 100.0)
    assert found == agreed
