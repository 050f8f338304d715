"""Traces presets one after the other: `python -m tests.trace_worker KIND`, with a list of `Asked` on stdin.

Prints a line of JSON for each: the figures of the trace, or the `error` that stopped it.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
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


BUGS = {bug.__name__: bug for bug in (reads_on_the_host, leaves_a_tensor_on_the_host)}
Asked = tuple[str | None, list[str]]
"""The name of a planted bug, if any, and what `python -m benchmarks.trace KIND` is given."""


def main(kind: str) -> None:
    guard.load()  # before PyTorch
    from jepa_lm.training.module import LanguageModelTask

    losses = LanguageModelTask._losses
    for bug, words in json.load(sys.stdin):
        with mock.patch.object(LanguageModelTask, "_losses", BUGS[bug](losses) if bug else losses):
            try:
                program.main(kind, *words)
            except Exception:
                print(json.dumps({"error": traceback.format_exc()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
