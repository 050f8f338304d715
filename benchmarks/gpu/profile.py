"""What the device did in three settled steps of a training run, by kind of kernel."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import Callback
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "nccl": r"nccl",
    "copies": r"memcpy|memset|copy_kernel|direct_copy",
    "attention": r"flash|fmha|sdpa|attention",
    "scan": r"log_decays|pass_states|scan_chunks|(column|row|step)_gradients|chunk_scan|chunk_state"
    r"|state_passing|bmm_chunk|chunk_cumsum",
    "gemm": r"gemm|cutlass|nvjet|xmma|cublas|gemv|splitk|triton_tem|triton_mm|aten::(addmm|b?mm|baddbmm)$",
    "foreach": r"multi_tensor_apply|_foreach_",
    "elementwise": r"^triton_|elementwise|reduce|vectorized|softmax|norm|index|scatter|gather|cat|fill"
    r"|topk|sort|scan",
}
"""Patterns of kernel names, tried in this order. `foreach` are the kernels of the optimizer, of clipping and
of averages; `elementwise` are the compiler's own kernels and PyTorch's elementwise ones and reductions."""
NOT_KERNELS = re.compile(
    r"^(Optimizer\.|ProfilerStep|## |\[pl\]|Torch-Compiled|Activity Buffer|Lazy)"
)
"""Spans of the host that a profile also draws on the device."""
LONGEST, NAME = 10, 90


class Kernel(NamedTuple):
    """A kernel that ran: name, begin and end in microseconds."""

    name: str
    begin: float
    end: float


class Profile(Callback):
    """Profiles some steps of a run, which makes them slower: time others.

    Args:
        first: first step, counted from 1. count: number of steps.
    """

    latest: ClassVar[Profile]

    def __init__(self, first: int, count: int) -> None:
        type(self).latest = self
        self.first, self.count = first, count
        self.kernels: list[Kernel] = []
        self.refused = ""
        """Why there is no profile."""
        self._profile: profile | None = None

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """Begin to record."""
        if trainer.global_step + 1 != self.first:
            return
        cuda = torch.cuda.is_available()
        activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
        _wait()
        try:
            self._profile = profile(activities=[activity])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._profile.start()
        except Exception as error:  # another profiler holds the device, or it may not be used
            self._profile, self.refused = None, f"{type(error).__name__}: {error}"

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """End the record and keep the kernels."""
        if self._profile is None or trainer.global_step != self.first + self.count - 1:
            return
        _wait()
        try:
            self._profile.stop()
            self.kernels = _kernels_of(self._profile)
            self.refused = "" if self.kernels else "the profiler recorded no kernel"
        except Exception as error:  # the times of the run are worth more than its profile
            self.refused = f"{type(error).__name__}: {error}"
        self._profile = None


def _kernels_of(profiled: profile) -> list[Kernel]:
    wanted = DeviceType.CUDA if torch.cuda.is_available() else DeviceType.CPU
    return [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiled.events() or ()
        if event.device_type == wanted and not NOT_KERNELS.match(event.name)
    ]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kind_of(name: str) -> str:
    """Return the kind of a kernel, by its name."""
    return next(
        (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)),
        "other",
    )


def busy_us(kernels: Iterable[Kernel]) -> float:
    """Return the time in which at least one kernel ran: kernels of several streams may overlap."""
    total, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda k: k.begin):
        total += max(0.0, kernel.end - max(kernel.begin, end))
        end = max(end, kernel.end)
    return total


def account(kernels: Sequence[Kernel], steps: int, step_ms: float) -> dict[str, Any]:
    """Return milliseconds per step by kind, the idle time, the number of kernels and the longest ones.

    Args:
        step_ms: time of a step that was not profiled; what no kernel fills of it is idle.
    """
    by_kind: Counter[str] = Counter()
    by_name: Counter[str] = Counter()
    for kernel in kernels:
        milliseconds = (kernel.end - kernel.begin) / 1000 / steps
        by_kind[kind_of(kernel.name)] += milliseconds  # type: ignore[assignment]
        by_name[kernel.name] += milliseconds  # type: ignore[assignment]
    busy = busy_us(kernels) / 1000 / steps
    return {
        "busy_ms": busy,
        "idle_ms": max(0.0, step_ms - busy),
        "ms": {kind: by_kind.get(kind, 0.0) for kind in (*KINDS, "other")},
        "share": {kind: by_kind.get(kind, 0.0) / step_ms for kind in (*KINDS, "other")},
        "kernels": len(kernels) / steps,
        "longest_ms": {name[:NAME]: ms for name, ms in by_name.most_common(LONGEST)},
    }
