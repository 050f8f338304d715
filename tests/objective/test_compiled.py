"""The whole loss compiles: same values, compiled once for all steps, and outside of training time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from jepa_lm.artifact.teacher import opener
from jepa_lm.commands import train as training
from jepa_lm.data.rows import VIEWS
from jepa_lm.objective import LatentPrediction, StepContext
from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.auxiliary import drawn
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils import compiling
from jepa_lm.utils.config import resolve
from jepa_lm.utils.trusted import Trust
from tests.objective.conftest import FIELD, SHALLOW, noise
from tests.runs import metrics, weights

ALL = (
    "none",
    "vicreg",
    "patch",
    "lewm",
    "chunk",
    "llm_jepa",
    "nextlat",
    "stp",
    "recipes/pr1277",
    *(pytest.param(name, marks=pytest.mark.slow) for name in FIELD if name != "stp"),
    pytest.param("llm_jepa_pairs", marks=pytest.mark.slow),
    pytest.param("distil_law", marks=pytest.mark.slow),
    pytest.param("recipes/pr1116", marks=pytest.mark.slow),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("mtp", "mtp_sequential", "top", "fsp")
    ),
    pytest.param("patch,mir", marks=pytest.mark.slow),
)
"""Objectives, with a token objective after a comma."""
ATTENDING = ("none", "llm_jepa", "recipes/pr1277")
"""Objectives whose passes attend: the main one, that of a suffix, and a predictor."""
ANGLES = {"cos", "sin"}
T = 128
"""Long enough that SIGReg uses only some time steps, which it draws."""
SHORT = (f"data.seq_len={T}", "model.backbone.layers=2", "model.backbone.rope_dims=8")
PHASED = {
    "pr1581_span_vicreg": ("quantization.training.lr_below=0.5", "optimizer.schedule.lr.steps=30"),
    "pr1243_jepardy": (
        "quantization.training.lr_below=0.5",
        "optimizer.schedule.lr.steps=30",
        "model.value_embedding.layers=[2,3]",
    ),
    "pr832_byte_chunk": ("jepa.when_zero=skip",),
    "pr1196_llm_jepa": ("jepa.schedule.steps=10",),
    "pr903_lewm_bpe": (),
    "pr903_lewm_byte": (),
}
"""Presets, with settings that give each of their phases some of 30 steps."""
PHASES = {"pr1581_span_vicreg": 2, "pr832_byte_chunk": 2, "pr1196_llm_jepa": 2}
"""Forms of the loss, with and without the objective; one elsewhere."""


def batches(steps: int):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(0, 400, (8, T + 1), generator=generator)
        views = torch.tensor([0, 40, 40, 90]).expand(8, 4)  # read by llm_jepa_pairs
        yield {"inputs": ids[:, :-1], "targets": ids[:, 1:], VIEWS: views}


class Noted:
    """A compiler that runs what was traced and notes what it calls."""

    def __init__(self) -> None:
        self.called: set[str] = set()

    def __call__(self, graph: torch.fx.GraphModule, example: object) -> Callable[..., object]:
        self.called.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward


@pytest.mark.parametrize("name", ALL)
def test_the_compiled_loss_is_the_loss_and_is_compiled_once(small, name):
    """The test is about what is traced, which reads tables of angles that were made before."""
    torch.manual_seed(0)
    clock = ProgressClock(max_steps=100, max_time=None)
    latent, _, tokens = name.partition(",")
    chosen = (
        f"objective={latent}",
        *([f"tokens={tokens}"] if tokens else ()),
        *SHALLOW.get(name, ()),
    )
    task = LanguageModelTask(resolve(small(*SHORT, *chosen)), clock, opener(Trust()))
    task.keep_tables()
    noise(task)
    torch._dynamo.reset()
    counters.clear()
    noted = Noted()
    compiled = torch.compile(task._losses, backend=noted)
    frames = []
    for batch in batches(5):
        objectives = task.auxiliaries
        step_context = drawn(objectives, frozenset(objectives), batch, StepContext(clock))
        want, got = task._losses(batch, step_context), compiled(batch, step_context)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        frames.append(counters["frames"]["ok"])
        clock.advance()
        if task.objective is not None:
            task.objective.after_step(task.model, clock)
    assert frames == [1] * 5, "a step is compiled anew, or in pieces"
    assert not counters["graph_break"]
    assert noted.called
    if name in ATTENDING:
        assert not noted.called & ANGLES


def test_tables_of_angles_that_are_made_in_a_pass_would_be_seen(small):
    """Planted bug: none was made before."""
    task = LanguageModelTask(
        resolve(small(*SHORT, "objective=none")), ProgressClock(max_steps=1, max_time=None)
    )
    noted = Noted()
    torch._dynamo.reset()
    torch.compile(task._losses, backend=noted)(next(batches(1)), None)
    assert noted.called >= ANGLES


def graphs_of(config, monkeypatch) -> int:
    """Train with a compiler that runs what was traced; return the number of graphs."""
    compile_ = torch.compile
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="eager"))
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)
    train(config)
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PHASED)
def test_a_preset_is_compiled_once_for_each_phase(compose, monkeypatch, preset):
    """Through accumulation, averages, measurements, quantization-aware training and every phase."""
    config = compose(
        "train",
        f"experiment={preset}",
        "debug=tiny",
        "compile=true",
        f"data.seq_len={T}",
        "model.backbone.layers=4",
        "trainer.max_steps=30",
        "trainer.accumulate_grad_batches=2",
        "trainer.limit_val_batches=1",
        "jepa.diagnostics.every=20",
        "average.decay=0.9",
        "sample=false",
        *PHASED[preset],
    )
    assert graphs_of(config, monkeypatch) == PHASES.get(preset, 1)


@pytest.mark.slow
def test_a_draw_inside_the_loss_would_be_seen(small, monkeypatch):
    """Planted bug: the draws are not made before the compiled function is called."""
    monkeypatch.setattr(LatentPrediction, "draw", lambda self, inputs, step_context: step_context)
    config = small("compile=true", "objective=lewm", f"data.seq_len={T}", "trainer.max_steps=2")
    with pytest.raises(AssertionError, match="draw_now"):
        graphs_of(config, monkeypatch)


@pytest.mark.slow
def test_generated_code_trains_the_same(small, tmp_path):
    """With the real compiler, through `train`; resumed, it ends with the same bits."""
    common = (
        "objective=lewm",
        "model.backbone.layers=2",
        "trainer.max_steps=3",
        "average.decay=0.5",
        "checkpoint.every_n_steps=1",
    )
    compiled = (*common, "compile=true")
    train(small(*common, run_dir=tmp_path / "eager"))
    train(small(*compiled, run_dir=tmp_path / "compiled"))
    saved = tmp_path / "compiled" / "checkpoints"
    train(small(*compiled, f"ckpt_path={saved / 'step-2.ckpt'}", run_dir=tmp_path / "resumed"))
    whole, resumed = (
        weights(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("compiled", "resumed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    earlier = weights(saved / "step-2.ckpt")
    assert not all(torch.equal(whole[key], earlier[key]) for key in whole)
    eager, compiled = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("eager", "compiled")
    )
    assert compiled["val"]["nll"] == pytest.approx(eager["val"]["nll"], rel=1e-4)
    assert compiled["compiled_parts"] == ["main pass", "cross entropy", "objective"]
    assert compiled["compile_seconds"] > 0
    assert compiled["seconds"] < compiled["compile_seconds"]


class StandingClock:
    """Advances by a second at every reading, and by what is added."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def compiled_run(small, monkeypatch, tmp_path) -> dict:
    """Train with a compiler that takes a million seconds; return the summary."""
    clock, compile_ = StandingClock(), torch.compile

    def slow(graph, inputs):
        clock.now += 1e6
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend=slow))
    monkeypatch.setattr(training, "ProgressClock", partial(ProgressClock, now=clock))
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)
    train(small("compile=true", "objective=patch", "trainer.max_steps=3"))
    return json.loads((tmp_path / "run" / "summary.json").read_text())


def test_compilation_is_no_training_time_and_is_told_once(small, monkeypatch, tmp_path, capsys):
    assert compiled_run(small, monkeypatch, tmp_path)["seconds"] < 1e4
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compil")]
    assert told[0] == "compiling the training step with the objective ..."
    assert re.fullmatch(r"compiled in \d+ s", told[1])
    assert len(told) == 2


def test_nor_is_the_rest_of_a_step_that_compiled(small, monkeypatch, tmp_path):
    """Its first run loads kernels: here the optimizer takes a million seconds in the first step alone."""
    clock, step = StandingClock(), MuonAdamW.step

    def slow(self, *args, **settings):
        first = not self.state
        loss = step(self, *args, **settings)  # Lightning computes the loss within
        clock.now += 1e6 * first
        return loss

    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="eager"))
    monkeypatch.setattr(MuonAdamW, "step", slow)
    monkeypatch.setattr(training, "ProgressClock", partial(ProgressClock, now=clock))
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)
    every_step = ("trainer.max_steps=3", "trainer.log_every_n_steps=1")
    train(small("compile=true", "objective=patch", "jepa.diagnostics.every=1", *every_step))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert clock.now > 1e6
    assert summary["seconds"] < 1e4
    speeds = metrics(tmp_path / "run", "train/tokens_per_second")
    assert len(speeds) == 3  # a log point in such a step is not lost
    assert speeds[0] == 0  # there was no step whose time is known
    assert all(10 < speed < 1e6 for speed in speeds[1:])


def test_a_clock_that_runs_on_would_be_seen(small, monkeypatch, tmp_path):
    """Planted bug: the clock does not stop for the compiler."""
    monkeypatch.setattr(
        "jepa_lm.training.callbacks.compiling.ClockStopsForCompiler.on_train_start", lambda *a: None
    )
    assert compiled_run(small, monkeypatch, tmp_path)["seconds"] > 1e6


def test_without_a_compiler_a_cpu_goes_on_uncompiled(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    train(small("compile=true", "trainer.max_steps=1"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["compiled"] is False
    assert capsys.readouterr().err.count("needs a C++ compiler") == 1


def test_a_short_run_is_not_compiled_unless_asked(small, tmp_path):
    train(small("trainer.max_steps=1"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["compiled"] is False
    assert summary["compiled_parts"] == []


def test_a_long_run_is_compiled_and_a_resume_keeps_what_was_chosen(small, tmp_path, monkeypatch):
    """Whatever the length of the resumed run says."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="eager"))
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)
    found = []
    for tokens, steps in (
        (256, 2),
        (10**9, 4),
    ):  # a step has 256 tokens: compiled at first, not later
        monkeypatch.setattr(compiling, "CPU", compiling.Budget(tokens=tokens, seconds=0))
        resume = "null" if steps == 2 else "auto"
        train(small(f"trainer.max_steps={steps}", f"ckpt_path={resume}"))
        found.append(json.loads((tmp_path / "run" / "summary.json").read_text()))
    assert [summary["steps"] for summary in found] == [2, 4]
    assert [summary["compiled"] for summary in found] == [True, True]
    config = torch.load(tmp_path / "run/checkpoints/last.ckpt")["hyper_parameters"]["config"]
    assert config["compile"] is True
