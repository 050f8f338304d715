"""Signals end a run after the current step with its state saved; then a launcher's handler is called."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch._inductor.exc import InductorError

from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.run import train
from jepa_lm.utils.signals import Stopped, StopRequest
from tests.runs import summary, with_callback


class SignalAt(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(autouse=True)
def in_a_terminal():
    """Reset SIGHUP, which tests started by nohup ignore."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def signalled(small):
    """signalled(step, signum, overrides...) trains until the signal comes."""

    def run(step, signum, *overrides, run_dir):
        with with_callback(SignalAt(step, signum), first=True):
            train(small(*overrides, run_dir=run_dir))

    return run


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR2"])
def test_preemption_saves_without_a_validation(signalled, small, tmp_path, trained, name):
    signum = getattr(signal, name)
    with pytest.raises(Stopped, match=name) as stopped:
        signalled(4, signum, run_dir=tmp_path / "run")
    assert stopped.value.exit_code == 128 + signum
    found = summary(tmp_path / "run")
    assert (found["status"], found["steps"], found["val"]) == ("interrupted", 4, None)
    train(small("ckpt_path=auto", run_dir=tmp_path / "run"))
    whole = read_checkpoint(trained.checkpoint)["state_dict"]
    rest = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(whole[n], rest[n]) for n in whole)
    assert summary(tmp_path / "run")["val"] == summary(trained.folder)["val"]


def test_ctrl_c_validates_and_saves(signalled, tmp_path, capsys):
    with pytest.raises(Stopped) as stopped:
        signalled(4, signal.SIGINT, run_dir=tmp_path / "run")
    assert stopped.value.exit_code == 130
    found = summary(tmp_path / "run")
    assert (found["status"], found["steps"]) == ("interrupted", 4)
    assert found["val"]["bpb"] > 0
    assert "SIGINT: stopping after this step and a validation" in capsys.readouterr().err


def test_a_step_of_several_micro_batches_is_finished_first(signalled, tmp_path):
    with pytest.raises(Stopped):
        signalled(2, signal.SIGTERM, "trainer.accumulate_grad_batches=4", run_dir=tmp_path / "run")
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == checkpoint["clock"]["step"] == 2


def test_a_launchers_handler_is_called_when_the_state_is_saved(signalled, tmp_path):
    """submitit requeues its job in it, so training must restore it."""
    calls = []

    def requeue(signum, frame):
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
        assert summary(tmp_path / "run")["status"] == "interrupted"
        calls.append(signum)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(Stopped):
            signalled(3, signal.SIGUSR2, run_dir=tmp_path / "run")
        assert calls == [signal.SIGUSR2]
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_handlers_are_put_back(small, tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    train(small("trainer.max_steps=1", "trainer.limit_val_batches=1"))
    after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert before == after


def test_a_run_that_is_to_outlive_its_terminal_does():
    """`nohup` starts it with the signal ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        request = StopRequest()
        with request.listening(speak=True):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not request.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_was_closed_takes_no_words(monkeypatch):
    """SIGHUP arrives because the terminal closed; writing to it fails inside the handler."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    request = StopRequest()
    with request.listening(speak=True):
        os.kill(os.getpid(), signal.SIGHUP)
    request.agreed = request.asked
    assert (request.signum, request.hurried) == (signal.SIGHUP, True)


def test_a_second_ctrl_c_stops_at_once_and_the_more_urgent_signal_wins():
    request = StopRequest()
    with request.listening(speak=False):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
    request.agreed = request.asked
    assert request.signum == signal.SIGTERM
    assert request.hurried


@pytest.mark.parametrize(
    ("name", "error"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit)]
)
def test_when_training_is_over_a_signal_stops_at_once(name, error):
    """No message promises a further step or validation, since none follows."""
    request = StopRequest()
    with request.listening(speak=True):
        request.over = True
        with pytest.raises(error):
            os.kill(os.getpid(), getattr(signal, name))
    assert not request.asked


@pytest.mark.parametrize("signalled", [True, False])
def test_a_signal_that_ends_the_compiler_as_well_is_a_stop(small, monkeypatch, capsys, signalled):
    """A signal to the process group reaches the C++ compiler, whose error would look like a bug."""

    def compile(function, **options):
        def called(*args):
            if signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            raise InductorError(RuntimeError("C++ compile error"), None)

        return called

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(Stopped if signalled else InductorError) as error:
        train(small("compile=true"))
    if signalled:
        assert error.value.exit_code == 143
        assert "ckpt_path=auto resumes the run" in capsys.readouterr().err
