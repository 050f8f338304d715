"""A full-size step without a compiler, on fake CUDA tensors: device mismatches, host reads, memory, launches.

A tensor on the wrong device stops the trace with the error that a GPU would raise. The memory is that of a
run with `compile=false`; a compiled one keeps less (`inductor.py`).
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import jepa_lm
from benchmarks.trace.step import Traced, autocast
from jepa_lm.objective import diagnostics
from jepa_lm.objective.latent_monitor import LatentMonitor
from jepa_lm.quantization.qat import FakeQuantizedWeights
from jepa_lm.training.callbacks.monitor import MeasureObjective

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default: 1.0,
    aten.equal.default: True,
    aten.is_nonzero.default: True,
}
"""Operations whose result is on the host, and what fake ones give."""
SHAPED_BY_VALUES = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default}
"""Operations that a GPU waits for, because only their values decide the shape of the result."""
NO_LAUNCH = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
}
"""Operations beside views that start no kernel."""
PACKAGE = str(jepa_lm.__path__[0])


class Recorder(TorchDispatchMode):
    """Records what operations on the device do.

    Attributes:
        now, peak: bytes of tensors on the device. launches: operations that start at least a kernel.
        reads: places in this package that wait for a value of the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.launches = 0
        self.reads: list[str] = []
        self._alive: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def read(self) -> None:
        """Record a host read, at the innermost line of the package."""
        lines = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        place = lines[-1] if lines else traceback.extract_stack()[-3]  # the backward pass has none
        self.reads.append(f"{place.filename.removeprefix(PACKAGE + '/')}:{place.lineno}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if _on_device(x)]
        if func in READS and any(isinstance(x, FakeTensor) for x in args):
            if given:  # not of the optimizer's counters, which are on the host
                self.read()
            return READS[func]
        if func in SHAPED_BY_VALUES and given:
            self.read()
        found = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        if given and any(not _on_device(x) for x in made):
            self.read()  # a copy to the host
        for tensor in made:
            if _on_device(tensor):
                self.hold(tensor)
        name = func.overloadpacket.__name__
        if (given or any(map(_on_device, made))) and not func.is_view and name not in NO_LAUNCH:
            self.launches += 1
        return found


def _on_device(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == "cuda"


def trace(traced: Traced) -> dict[str, Any]:
    """Run a step between log points and a measurement of the objective; return their figures.

    Presets that train on quantized weights at some time take one more step with them.

    Returns:
        `peak_gb` of the steps, with gradients and optimizer state, and `held_gb` after the forward pass of
        the plain one; `measured_gb`, the peak of the measurement; `eager_launches` of the plain step,
        `quantized_launches` of the other one, 0 without; and `reads`, which must be empty.
    """
    task = traced.task
    schedule, weights = task.policy.training, None
    if schedule.ever:
        weights = FakeQuantizedWeights(task.model, schedule.formats(task.formats))
    with traced.mode, autocast():
        step = _Step(traced)
        step.run()  # the first one makes the optimizer's state
        first = step.recorder
        step = step.again()
        step.run()
        quantized = step.again()
        if weights is not None:
            quantized.run(weights)
        measured = step.again()
        if task.objective is not None:
            measured.measure()
    return {
        "peak_gb": max(first.peak, step.recorder.peak, quantized.recorder.peak) / 1e9,
        "held_gb": step.held / 1e9,
        "measured_gb": measured.recorder.peak / 1e9,
        "eager_launches": step.recorder.launches,
        "quantized_launches": quantized.recorder.launches,
        "reads": [read for part in (step, quantized, measured) for read in part.recorder.reads]
        + first.reads,
    }


class _Step:
    """Steps of a task with Lightning's part played by this class."""

    def __init__(self, traced: Traced, before: _Step | None = None) -> None:
        self.traced, self.task, self.held = traced, traced.task, 0
        self.recorder = Recorder()
        if before is None:
            self.task._trainer = _trainer()
            made = self.task.configure_optimizers()
            self.optimizer, self.scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
        else:
            self.optimizer, self.scheduler = before.optimizer, before.scheduler
        self.task.trainer.optimizers = [self.optimizer]
        states = (x for state in self.optimizer.state.values() for x in state.values())
        kept = (*self.task.parameters(), *self.task.buffers(), *traced.batch.values(), *states)
        for tensor in kept:
            if _on_device(tensor):
                self.recorder.hold(tensor)

    def again(self) -> _Step:
        """Return a step after this one, with figures of its own."""
        return _Step(self.traced, self)

    def run(self, weights: FakeQuantizedWeights | None = None) -> None:
        """Train on the micro-batch, perhaps on quantized weights: losses to update, and what ends a step."""
        task, clip = self.task, self.task.config["trainer"]["gradient_clip_val"]
        with self.recorder, _without_values(self.recorder):
            if weights is not None:
                weights.swap_in()
            loss = task.training_step(self.traced.batch, 0)
            self.held = self.recorder.now
            with torch.autocast("cuda", enabled=False):
                loss.backward()
                del loss
                if weights is not None:
                    weights.swap_out()
                task.configure_gradient_clipping(self.optimizer, clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
                task.lr_scheduler_step(self.scheduler, None)

    def measure(self) -> None:
        """Measure the objective as its callback does; reads are expected there."""
        task = self.task
        assert task.objective is not None
        task.trainer.global_step = task.objective.diagnostics.every  # type: ignore[misc]
        callback = MeasureObjective(LatentMonitor(task.objective), None)
        with self.recorder, _without_values(self.recorder):
            callback.on_train_batch_end(task.trainer, task, None, self.traced.batch, 0)
        assert callback.monitor.figures
        self.recorder.reads.clear()


def _trainer() -> Any:
    """Return what a step asks of Lightning's trainer: one process, and no log point soon."""
    return SimpleNamespace(
        global_step=1,
        global_rank=0,
        world_size=1,
        log_every_n_steps=1 << 30,
        accumulate_grad_batches=1,
        precision="bf16-mixed",
        precision_plugin=SimpleNamespace(forward_context=autocast),
        is_global_zero=False,
        should_stop=False,
        loggers=[],
    )


@contextmanager
def _without_values(recorder: Recorder) -> Iterator[None]:
    """Record reads that bypass the dispatcher, and leave out the eigenvalues, which no kernel launches."""

    def tolist(tensor: Tensor) -> Any:
        if not _on_device(tensor):
            return whole(tensor)
        recorder.read()
        return torch.zeros(tensor.shape, device="meta").numel() * [0.0]

    whole = Tensor.tolist
    with (
        mock.patch.object(Tensor, "tolist", tolist),
        mock.patch.object(diagnostics, "effective_rank", lambda rows: rows.new_zeros(())),
    ):
        yield
