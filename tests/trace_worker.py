"""Traces presets one after the other: `python -m tests.trace_worker KIND`, with a list of `Asked` on stdin.

Prints a line of JSON for each: the figures of the trace, or the `error` that stopped it.
"""

from __future__ import annotations

import json
import pkgutil
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

from benchmarks.trace import __main__ as program
from benchmarks.trace import guard


def reads_on_the_host(losses: Callable[..., Any]) -> Callable[..., Any]:
    """Planted bug: the host waits for the loss."""

    def faulty(*arguments: Any) -> Any:
        found = losses(*arguments)
        found[0].item()
        return found

    return faulty


def leaves_a_tensor_on_the_host(losses: Callable[..., Any]) -> Callable[..., Any]:
    """Planted bug: places that are not moved to the device."""

    def faulty(self: Any, batch: Any, step_context: Any) -> Any:
        inputs = batch["inputs"]
        places = inputs.new_zeros(inputs.shape[1], device="cpu")
        return losses(self, dict(batch, inputs=inputs + places), step_context)

    return faulty


def reads_when_quantized(swap_in: Callable[..., Any]) -> Callable[..., Any]:
    """Planted bug: the host looks at a quantized weight."""

    def faulty(self: Any) -> None:
        swap_in(self)
        self.weights[0].sum().item()

    return faulty


BUGS: dict[str, tuple[Callable[..., Any], str]] = {
    "reads_on_the_host": (reads_on_the_host, "training.module.LanguageModelTask._losses"),
    "leaves_a_tensor_on_the_host": (
        leaves_a_tensor_on_the_host,
        "training.module.LanguageModelTask._losses",
    ),
    "reads_when_quantized": (reads_when_quantized, "quantization.qat.FakeQuantizedWeights.swap_in"),
}
"""By name: what makes a faulty function of a right one, and the place of that."""
Asked = tuple[str | None, list[str]]
"""The name of a planted bug, if any, and what `python -m benchmarks.trace KIND` is given."""


def main(kind: str) -> None:
    guard.load()  # before PyTorch
    for bug, words in json.load(sys.stdin):
        with planted(bug) if bug else nullcontext():
            try:
                program.main(kind, *words)
            except Exception:
                print(json.dumps({"error": traceback.format_exc()}))


def planted(bug: str) -> AbstractContextManager[Any]:
    """Return a context in which the package has this bug."""
    make, place = BUGS[bug]
    return mock.patch(f"jepa_lm.{place}", make(pkgutil.resolve_name(f"jepa_lm.{place}")))


if __name__ == "__main__":
    main(*sys.argv[1:])
