"""Sizes of the kit: a GPU at the published shapes, or a rehearsal on a CPU with tiny ones."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from benchmarks.measure import Claim, at_most, report
from benchmarks.models import compose
from jepa_lm.data.corpora import Austen

GPUS = 8
"""The published runs split a step over this many."""
TEXT_CHARACTERS = 100_000


@dataclass(frozen=True)
class Scale:
    """Where and how large.

    Args:
        device: `cuda`, or `cpu` for a rehearsal. folder: for runs, data and artifacts; kept between steps.
    """

    device: str
    folder: Path

    @property
    def full(self) -> bool:
        """True on a GPU: published shapes."""
        return self.device == "cuda"

    def pick(self, full: Any, tiny: Any) -> Any:
        """Return the value for this scale."""
        return full if self.full else tiny

    def config(
        self, preset: str, name: str, *overrides: str, trainer: str | None = None
    ) -> DictConfig:
        """Return the config of a short run of a preset on the embedded corpus, one GPU's share of a step.

        Args:
            name: of the run's folder; what an earlier attempt left there is removed.
            trainer: of `conf/trainer`; None for one device without exchange.
        """
        shutil.rmtree(self.folder / name, ignore_errors=True)
        sizes = [
            "debug=tiny",
            "data.batch_tokens=256",
            "data.val_batch_tokens=256",
            "compile=false",
            f"trainer={trainer or 'cpu'}",
            "data/corpus=text",
            f"data.path={self._text()}",
        ]
        if self.full:
            step = compose(f"experiment={preset}").data.batch_tokens
            sizes = [
                "data/corpus=austen",
                f"trainer={trainer or 'gpu'}",
                f"data.batch_tokens={step // GPUS}",
                "trainer.accumulate_grad_batches=1",
                "compile=true",
            ]
        return compose(
            f"experiment={preset}",
            *sizes,
            "trainer.max_time=null",
            "trainer.log_every_n_steps=20",
            "trainer.val_check_interval=null",
            "trainer.limit_val_batches=2",
            "checkpoint.every_n_steps=null",
            "sample=false",
            f"paths.run_dir={self.folder / name}",
            f"paths.cache={self.folder / 'cache'}",
            *overrides,
        )

    def _text(self) -> Path:
        """Return the file of a little English, for a rehearsal."""
        path = self.folder / "text.txt"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            blocks = Austen().blocks("train")
            text = "".join(next(blocks).text for _ in range(12))[:TEXT_CHARACTERS]
            path.write_text(text, encoding="utf-8")
        return path

    def at_most(self, name: str, value: float, *, target: float, **rest: Any) -> Claim:
        """Return a claim about speed; in a rehearsal a report, as nothing is claimed about a CPU."""
        if self.full:
            return at_most(name, value, target=target, **rest)
        return report(name, value, **rest)

    def seconds(self, function: Callable[[], Any], *, repeats: int = 10) -> float:
        """Return the median seconds of a call, by the device's own clock on a GPU."""
        for _ in range(2):
            function()
        if not self.full:
            return statistics.median(_timed(function) for _ in range(3))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            function()
            mark.record()
        torch.cuda.synchronize()
        pairs = pairwise(marks)
        return statistics.median(a.elapsed_time(b) for a, b in pairs) / 1000


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what Python prints to stderr: stdout is for claims."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
