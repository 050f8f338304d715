"""What a run says while it trains: the bar, which reads losses only at log points, and compilation."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.callback import callback_handler

from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.callbacks import progress
from jepa_lm.training.callbacks.compiling import ClockStopsForCompiler
from jepa_lm.training.callbacks.progress import TrainingBar
from jepa_lm.training.validated import ValidatedModule

FIGURES = {"train/ce": 2.0, "train/bpb": 1.5, "train/tokens_per_second": 9.0}


class Figures(dict):
    """Figures of the latest log point, which say when they are read."""

    reads = 0

    def __getitem__(self, name):
        Figures.reads += 1
        return super().__getitem__(name)


class Moved(TrainingBar):
    """A bar on a terminal that keeps what it is moved to."""

    def __init__(self) -> None:
        super().__init__()
        self._console._force_terminal = True
        self.moves: list[tuple[int, float, str]] = []

    def _move(self, step, progress, **figures):
        super()._move(step, progress, **figures)
        (task,) = self._bar.tasks
        self.moves.append((task.fields["step"], task.completed, task.fields["figures"]))


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.seconds)
    return clock


def test_the_bar_moves_every_second_and_reads_losses_at_log_points(now):
    clock = ProgressClock(max_steps=100, max_time=None)
    task = SimpleNamespace(clock=clock, live=Figures())
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=50)
    bar = Moved()
    bar.on_train_start(trainer, task)
    try:
        for step in range(1, 61):  # of 0.3 s each
            clock.step, trainer.global_step, now.seconds = step, step, 100 + 0.3 * step
            if step == 50:
                task.live = Figures(FIGURES, **{"train/progress": 0.5})
            before = Figures.reads
            bar.on_train_batch_end(trainer, task, None, None, 0)
            assert (Figures.reads > before) == (step == 50)
    finally:
        bar.on_exception(trainer, task, KeyboardInterrupt())
    shown = "  loss 2.000  bpb 1.500  9 tokens/s"
    assert [step for step, _, _ in bar.moves] == [1, *range(5, 50, 4), 50, 54, 58]
    assert [done for _, done, _ in bar.moves] == [step / 100 for step, _, _ in bar.moves]
    assert [text for _, _, text in bar.moves] == [
        shown if step >= 50 else "" for step, _, _ in bar.moves
    ]


def test_without_a_terminal_the_steps_between_log_points_say_nothing(now, capsys):
    task = SimpleNamespace(clock=ProgressClock(max_steps=100, max_time=None), live={})
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=50)
    bar = TrainingBar()
    bar.on_train_start(trainer, task)
    for step in range(1, 60):
        trainer.global_step, now.seconds = step, 100.0 * step
        if step == 50:
            task.live = {**FIGURES, "train/progress": 0.5}
        bar.on_train_batch_end(trainer, task, None, None, 0)
    told = capsys.readouterr().err
    assert told == "training  50%  step 50  loss 2.000  bpb 1.500  9 tokens/s\n"


class Steps:
    """Steps of a run that compile something, as the compiler tells of it."""

    def __init__(self, *, first: bool = True, objective: object = "vicreg") -> None:
        self.compiler, self.trainer = ClockStopsForCompiler(), SimpleNamespace(is_global_zero=first)
        self.task = SimpleNamespace(
            active=frozenset(),
            auxiliaries={}
            if objective is None
            else {"jepa": SimpleNamespace(active=lambda c: False)},
            clock=None,
            device=torch.device("cpu"),
            not_training=nullcontext,
            wait_for_device=lambda: None,
            training_log=SimpleNamespace(untimed=0),
            ends_step=lambda batch_idx: True,
        )

    def step(self, *, active: bool, parts: int) -> None:
        self.compiler.on_train_batch_start(self.trainer, self.task, None, 0)
        self.task.active = frozenset({"jepa"} if active else ())
        for _ in range(parts):
            callback_handler.start_callbacks[-1](None)
            callback_handler.end_callbacks[-1](None)
        self.compiler.on_train_batch_end(self.trainer, self.task, None, None, 0)

    def run(self) -> None:
        self.compiler.on_train_start(self.trainer, self.task)
        for active, parts in ((False, 3), (False, 0), (False, 1), (True, 2), (True, 0), (False, 0)):
            self.step(active=active, parts=parts)
        self.compiler.on_train_end(self.trainer, self.task)


def test_compilation_is_told_once_for_each_phase(capsys):
    Steps().run()
    assert capsys.readouterr().err.splitlines() == [
        "compiling the training step without the objective ...",
        "compiled in 0 s",
        "compiling the training step with the objective ...",
        "compiled in 0 s",
    ]


def test_the_clock_stands_still_in_a_gpu_s_first_step_of_each_phase():
    """Triton builds its kernels there even if PyTorch compiles nothing; the clock waits for the GPU."""
    steps, stood, waited = Steps(), [], []
    steps.task.device = torch.device("cuda")
    steps.task.wait_for_device = lambda: waited.append(steps.compiler._since is not None)
    steps.compiler.on_train_start(steps.trainer, steps.task)
    for active in (False, False, True, True, False):
        steps.task.auxiliaries = {"jepa": SimpleNamespace(active=lambda clock, now=active: now)}
        steps.compiler.on_train_batch_start(steps.trainer, steps.task, None, 0)
        stood.append(steps.compiler._since is not None)
        steps.compiler.on_train_batch_end(steps.trainer, steps.task, None, None, 0)
        assert steps.compiler._since is None
    steps.compiler.on_train_end(steps.trainer, steps.task)
    assert stood == [True, False, True, False, False]
    assert waited == [True, True]
    assert steps.task.training_log.untimed == 2


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"first": False}, ""),
        ({"objective": None}, 2 * "compiling the training step ...\ncompiled in 0 s\n"),
    ],
    ids=["another rank", "no objective"],
)
def test_only_the_first_rank_tells_of_it(how, told, capsys):
    Steps(**how).run()
    assert capsys.readouterr().err == told


def test_the_clock_runs_until_a_gpu_has_done_its_work(small, monkeypatch):
    """What is still queued when a validation or the end of the run stops the clock is training, too."""
    running = []
    monkeypatch.setattr(
        ValidatedModule, "wait_for_device", lambda self: running.append(self.clock.running)
    )
    train(small("trainer.max_steps=2", "trainer.val_check_interval=1"))
    assert running.count(True) >= 2
    assert running[0] is True


def test_only_a_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device in ("cpu", "cuda:1"):
        ValidatedModule.wait_for_device(SimpleNamespace(device=torch.device(device)))
    assert waited == [torch.device("cuda:1")]
