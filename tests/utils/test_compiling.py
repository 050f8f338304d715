"""When `compile=null` compiles: by the share of a process, and only where there is a compiler."""

from __future__ import annotations

import pytest

from jepa_lm.utils import compiling


def config(*, batch_tokens=1_000_000, max_steps=100, max_time=None, **trainer):
    cpu = {"accelerator": "cpu", "devices": 1, "max_steps": max_steps, "max_time": max_time}
    return {"compile": None, "data": {"batch_tokens": batch_tokens}, "trainer": cpu | trainer}


GPU = {"accelerator": "gpu"}


@pytest.mark.parametrize(
    ("settings", "pays"),
    [
        ({**GPU, "max_steps": 50}, True),
        ({**GPU, "max_steps": 49}, False),
        ({**GPU, "max_steps": 50, "devices": 8}, False),
        ({**GPU, "max_steps": 400, "devices": 8}, True),
        ({**GPU, "max_steps": 400, "devices": 8, "num_nodes": 2}, False),
        ({**GPU, "max_steps": None, "max_time": 600, "devices": 8}, True),
        ({**GPU, "max_steps": None, "max_time": 60}, False),
        ({"max_steps": 5}, True),
        ({"max_steps": 5, "devices": 2}, False),
    ],
)
def test_a_process_must_train_on_enough_tokens(settings, pays):
    assert compiling.pays(config(**settings)) is pays


@pytest.mark.parametrize(
    ("devices", "count"),
    [(3, 3), ("3", 3), ([0, 2], 2), ("0,2", 2), ("0,", 1), ("auto", 4), (-1, 4)],
)
def test_processes_are_counted(monkeypatch, devices, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert compiling.processes({**GPU, "devices": devices}) == count


@pytest.mark.parametrize(
    ("accelerator", "variable", "words"),
    [
        (
            "cpu",
            "CXX",
            "compile: needs a C++ compiler (g++, or the one that CXX names); not compiled",
        ),
        ("gpu", "CC", "compile: needs a C compiler (gcc, or the one that CC names); not compiled"),
    ],
)
def test_without_a_compiler_nothing_is_compiled(monkeypatch, capsys, accelerator, variable, words):
    """On a GPU, Triton compiles what starts its kernels."""
    monkeypatch.setenv(variable, "no-such-compiler")
    assert compiling.compiles({**config(accelerator=accelerator), "compile": True}) is False
    assert capsys.readouterr().err == f"warning: {words}\n"
    monkeypatch.setenv(variable, "sh")  # any program that is there
    assert compiling.compiles({**config(accelerator=accelerator), "compile": True}) is True
