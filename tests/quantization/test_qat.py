"""Quantization-aware training: quantized weights in every forward pass, full ones in every update."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_lm.model import token_nll
from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.quantization import qat
from jepa_lm.quantization.formats import Cast, Integer
from jepa_lm.quantization.qat import FakeQuantizedWeights, QATSchedule, stored_copy
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.callbacks.qat import QuantizationAwareTraining
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError
from tests.runs import fake_quantized, with_callback

NOW = ("quantization=int4", "quantization.training.start=0")


class StraightThrough(torch.autograd.Function):
    """The textbook form: round in the forward pass, pass the gradient through unchanged."""

    @staticmethod
    def forward(ctx, weight, format_):
        return format_.fake_quantize(weight)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def task_of(small, *overrides) -> LanguageModelTask:
    torch.manual_seed(0)
    return LanguageModelTask(resolve(small(*overrides)), ProgressClock(max_steps=10, max_time=None))


def batch_of(step: int) -> dict:
    ids = torch.randint(0, 400, (4, 33), generator=torch.Generator().manual_seed(step))
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:]}


@pytest.mark.parametrize("backbone", ["model=transformer", "model=mamba2"])
@pytest.mark.parametrize("policy", ["int4", "int4_fp8", "int8"])
def test_swapping_is_the_straight_through_gradient(small, backbone, policy):
    """Step for step against fake quantization inside the graph, which never touches the weights."""
    overrides = (backbone, f"quantization={policy}", "quantization.training.start=0")
    swapped, textbook = task_of(small, *overrides), task_of(small, *overrides)
    formats = textbook.policy.training.formats(textbook.formats)
    assert len(formats) > 10
    weights = fake_quantized(swapped)
    optimizers = [task.recipe.configure(task, task.clock)[0] for task in (swapped, textbook)]
    for step in range(3):
        batch = batch_of(step)
        with weights.swapped():
            loss = token_nll(swapped.model(batch["inputs"])[0], batch["targets"]).mean()
            loss.backward()
        rounded = {
            name: StraightThrough.apply(p, formats[name]) if name in formats else p
            for name, p in textbook.model.named_parameters()
        }
        logits, _ = torch.func.functional_call(textbook.model, rounded, (batch["inputs"],))
        other = token_nll(logits, batch["targets"]).mean()
        other.backward()
        assert loss.item() == pytest.approx(other.item(), rel=1e-6)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (name, a), (_, b) in zip(
        swapped.model.named_parameters(), textbook.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_swapping_in_gives_the_stored_weights_and_out_the_full_ones(small):
    task = task_of(small, *NOW)
    full = {n: p.detach().clone() for n, p in task.model.named_parameters()}
    stored = dict(
        stored_copy(task.model, task.policy.training.formats(task.formats)).named_parameters()
    )
    weights = fake_quantized(task)
    with weights.swapped():
        weights.swap_in()  # a second call changes nothing: accumulated micro-batches
        inside = {n: p.detach().clone() for n, p in task.model.named_parameters()}
    for name, p in task.model.named_parameters():
        assert torch.equal(p, full[name])
        torch.testing.assert_close(inside[name], stored[name], rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_every_named_tensor_changes_the_forward(small, compiled):
    """Detects a switch that reaches no weight, or that the compiler folded into a constant."""
    task = task_of(small, *NOW)
    names = fake_quantized(task).names
    assert set(names) == {n for n, f in task.formats.items() if f.name == "int4"}
    for p in task.model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    ids = batch_of(0)["inputs"]

    def logits(x):
        return task.model(x)[0]

    forward = torch.compile(logits, backend="aot_eager") if compiled else logits
    with torch.no_grad():
        plain = forward(ids)
        for name in names:
            alone = FakeQuantizedWeights(task.model, {name: task.formats[name]})
            with alone.swapped():
                moved = (forward(ids) - plain).abs().max()
            assert moved > 0, name
        torch.testing.assert_close(forward(ids), plain, rtol=0, atol=0)


def test_a_tensor_that_nothing_reads_would_be_seen(small):
    """Planted bug: a forward pass that bypasses the quantized tensor."""
    task = task_of(small, *NOW)
    name = "backbone.blocks.0.mlp.up.weight"
    copied = task.model.backbone.blocks[0].mlp.up.weight.detach().clone()
    task.model.backbone.blocks[0].mlp.up.forward = lambda x: x @ copied.T
    ids = batch_of(0)["inputs"]
    plain = task.model(ids)[0]
    with FakeQuantizedWeights(task.model, {name: task.formats[name]}).swapped():
        assert (task.model(ids)[0] - plain).abs().max() == 0


class Spy(Callback):
    """Records whether the weights are on their grid in each step's loss and update."""

    def __init__(self) -> None:
        self.in_loss, self.in_update = [], []

    def on_before_backward(self, trainer, task, loss):
        self.in_loss.append(on_grid(task))

    def on_train_batch_end(self, trainer, task, *args):
        self.in_update.append(on_grid(task))


def on_grid(task) -> bool:
    """Return whether int4 holds the weights exactly."""
    weight = task.model.get_parameter("backbone.blocks.0.attention.query.weight")
    return len(torch.unique(weight[0])) <= 15


@pytest.fixture
def spied(small):
    def run(*overrides, **where):
        spy = Spy()
        with with_callback(spy):
            train(small(*overrides, **where))
        return spy

    return run


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        (("quantization.training.start=0",), 1),
        (("quantization.training.start=0.5",), 4),
        # Six steps, warmdown over the last half: factors 1, 1, 1, 1, 2/3, 1/3.
        (("quantization.training.lr_below=0.7", "optimizer.schedule.lr.fraction=0.5"), 5),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_begins_where_the_plan_says(spied, tmp_path, settings, first, accumulate):
    more = ("quantization=int4", f"trainer.accumulate_grad_batches={accumulate}")
    spy = spied(*more, *settings, run_dir=tmp_path / "run")
    steps = [i // accumulate + 1 for i in range(6 * accumulate)]
    assert spy.in_loss == [step >= first for step in steps]
    ends = spy.in_update[accumulate - 1 :: accumulate]
    assert not any(ends)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["trained_stored"]["first_step"] == first
    assert summary["trained_stored"]["tensors"] > 10
    assert summary["val"]["quantized"]["bpb"] != summary["val"]["bpb"]


def test_it_begins_in_time_under_a_wall_clock_budget(small):
    """10,000 steps are planned, and the time limit ends the run after ten."""
    task, seconds, seen = task_of(small, "quantization.training.start=0.5"), [0.0], []
    qat = QuantizationAwareTraining(task.model, task.policy.training, task.formats)
    clock = ProgressClock(max_steps=10_000, max_time=10.0, now=lambda: seconds[0])
    task.clock = clock
    clock.start()
    for _ in range(10):
        seen.append(qat.active(task))
        seconds[0] += 1.0
        clock.advance()
    assert seen == [False] * 5 + [True] * 5


@pytest.mark.usefixtures("answers_here")
def test_validation_scores_what_would_be_exported(spied, compose, small, tmp_path):
    from jepa_lm.run import evaluate, export

    spied(*NOW, "average.decay=0.5", run_dir=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["val"]
    assert {"raw", "quantized"} < summary.keys()
    export(compose("export", f"ckpt_path={tmp_path / 'run'}", run_dir=tmp_path / "export"))
    quick = ("eval.baselines=false", "eval.audit=false")
    scored = evaluate(compose("eval", f"artifact_path={tmp_path / 'export'}", *quick))
    assert scored == pytest.approx(summary["quantized"]["bpb"], abs=1e-5)


def test_checkpoints_hold_full_weights_under_their_own_names(spied, tmp_path):
    spied(*NOW, run_dir=tmp_path / "with")
    spied("quantization=int4", run_dir=tmp_path / "without")
    states = [
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("with", "without")
    ]
    assert states[0].keys() == states[1].keys()
    weight = states[0]["model.backbone.blocks.0.attention.query.weight"]
    assert len(torch.unique(weight[0])) > 50


def test_a_resumed_run_is_the_same_run(spied, tmp_path):
    common = (*NOW, "checkpoint.every_n_steps=4")
    spied(*common, run_dir=tmp_path / "whole")
    fourth = tmp_path / "whole" / "checkpoints" / "step-4.ckpt"
    spied(*common, f"ckpt_path={fourth}", run_dir=tmp_path / "rest")
    ends = [
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("whole", "rest")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_ghost_steps_see_full_weights(small, tmp_path, monkeypatch):
    seen = []
    forward = LanguageModelTask.training_step

    def spy(task, batch, batch_idx):
        seen.append(on_grid(task))
        return forward(task, batch, batch_idx)

    monkeypatch.setattr(LanguageModelTask, "training_step", spy)
    train(small(*NOW, "optimizer.ghost_steps=2", "trainer.max_steps=1"))
    assert seen == [False, False, True]


def test_an_interrupted_step_leaves_full_weights(small, monkeypatch):
    tasks = []

    def broken(task, batch, batch_idx):
        tasks.append(task)
        assert on_grid(task)
        raise RuntimeError("power cut")

    monkeypatch.setattr(LanguageModelTask, "training_step", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        train(small(*NOW))
    assert not on_grid(tasks[0])


def test_casts_are_not_trained_on_and_the_clip_is_the_plans():
    integer = Integer(bits=4, group=None, clip=[0.9, 1.0], scale_dtype="bfloat16")
    formats = {"a": integer, "b": Cast(dtype="float16")}
    plan = QATSchedule(start=0.0, lr_below=None, clip=0.99)
    found = plan.formats(formats)
    assert set(found) == {"a"}
    assert found["a"].clips == [0.99]
    assert QATSchedule(start=0.0, lr_below=None, clip=None).formats(formats)["a"] is integer


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(start=0.1, lr_below=0.1), "set start or lr_below, not both"),
        (
            dict(start=1.5, lr_below=None),
            r"start=1\.5: expected a number from 0 to 1",
        ),
        (dict(start=None, lr_below=-1.0), r"lr_below=-1\.0: expected a number from 0 to 1"),
        (
            dict(start=0.5, lr_below=None, clip=2.0),
            r"clip=2\.0: expected a number above 0 and at most 1",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        QATSchedule(**{"clip": None, **settings})


def test_swapping_copies_nothing(small):
    """The full weights stay where they are and return to the same memory."""
    task = task_of(small, *NOW)
    stored = fake_quantized(task)
    places = [w.data_ptr() for w in stored.weights]
    with stored.swapped():
        assert not set(places) & {w.data_ptr() for w in stored.weights}
    assert [w.data_ptr() for w in stored.weights] == places


def test_joined_matrices_are_quantized_as_apart_and_keep_memory_of_their_own(small, monkeypatch):
    """As on a GPU. DDP's compiler puts weights that share memory into one bucket."""
    task = LanguageModelTask(resolve(small("quantization=int6")))
    formats = QATSchedule(start=0.0, lr_below=None, clip=1.0).formats(task.formats)
    weights = FakeQuantizedWeights(task.model, formats)
    with weights.swapped():
        apart = [w.detach().clone() for w in weights.weights]
    monkeypatch.setattr(qat, "_joined", lambda matrix: True)
    places = []
    for _ in range(2):
        with weights.swapped():
            assert all(map(torch.equal, apart, weights.weights))
            places.append([w.untyped_storage().data_ptr() for w in weights.weights])
    assert len(set(places[0])) == len(weights.weights)
    assert places[0] == places[1]


def test_matrices_snapped_together_are_the_same_as_alone():
    """On a GPU all matrices of one width are snapped together."""
    torch.manual_seed(0)
    for clip in (1.0, [0.99, 1.0]):
        kind = Integer(bits=4, group=None, clip=clip, scale_dtype="bfloat16")
        matrices = [torch.randn(rows, 48) for rows in (3, 16, 7)]
        together = kind.fake_quantize(torch.cat(matrices)).split([len(m) for m in matrices])
        assert all(
            torch.equal(kind.fake_quantize(m), t) for m, t in zip(matrices, together, strict=True)
        )


def test_no_plan_is_no_training_on_stored_weights(small):
    task = task_of(small, "quantization=int4")
    assert build("quantization", task.config["quantization"]).training.ever is False


class StopInTheMiddle(Callback):
    """Simulates Ctrl-C between two micro-batches of one step."""

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if batch_idx == 4:
            assert on_grid(task)
            trainer.should_stop = True


@pytest.mark.parametrize("validated", [True, False])
def test_a_stop_between_micro_batches_leaves_full_weights(small, tmp_path, validated):
    more = () if validated else ("trainer.limit_val_batches=0",)
    with with_callback(StopInTheMiddle()):
        train(small(*NOW, "trainer.accumulate_grad_batches=2", *more, run_dir=tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    weight = state["model.backbone.blocks.0.attention.query.weight"]
    assert len(torch.unique(weight[0])) > 15
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    if validated:
        assert summary["val"]["quantized"]["bpb"] != summary["val"]["bpb"]


class HostReads(TorchDispatchMode):
    """Counts values that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["int4", "int4_fp8", "int8"])
def test_a_step_on_stored_weights_reads_nothing_back(small, policy):
    """On a GPU the host waits for all earlier work at each value that it reads."""
    task = task_of(small, f"quantization={policy}", "quantization.training.start=0")
    with HostReads() as planted:
        bool(torch.isfinite(torch.ones(3)).all())
    assert planted.seen == 1
    stored = fake_quantized(task)
    with HostReads() as reads, stored.swapped():
        pass
    assert reads.seen == 0


def test_a_nested_swap_ends_as_it_began(small):
    task = task_of(small, *NOW)
    stored = fake_quantized(task)
    with stored.swapped():
        with stored.swapped():
            pass
        assert on_grid(task)
    assert not on_grid(task)
