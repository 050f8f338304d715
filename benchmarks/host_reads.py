"""Claim 2: between log points, a step reads nothing from the device and starts no additional collective.

PyTorch's dispatcher counts the reads in a run with an objective; AdamW's step counters are excluded, since
they are on the host with any device. Collectives are counted in a run of two processes: each step has one
gather of Muon's updates, and DDP's own reduction of gradients, which starts in C++.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import Claim, at_most
from benchmarks.models import compose
from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.run import train

LOG_EVERY, STEPS = 5, 21
SMALL = (
    "data=bytes256",
    "data.seq_len=32",
    "data.batch_tokens=256",
    "model.dim=64",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=2",
    "model.backbone.layers=2",
    "model.backbone.xsa_last=0",
    "trainer.precision=32-true",
    "trainer.gradient_clip_val=1.0",
    "trainer.limit_val_batches=0",
    f"trainer.max_steps={STEPS}",
    f"trainer.log_every_n_steps={LOG_EVERY}",
    "checkpoint.every_n_steps=null",
    "sample=false",
)


class CountReads(Callback):
    """Counts the scalars that each step of the latest run read on the host."""

    counts: ClassVar[list[int]]
    counting: ClassVar[bool] = True

    def on_train_start(self, *args: Any) -> None:
        """Start to count."""
        kind, this = type(self), self
        kind.counts, self._count = [], 0

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                if kind.counting and func is torch.ops.aten._local_scalar_dense.default:
                    this._count += 1
                return func(*args, **(kwargs or {}))

        def tolist(tensor: torch.Tensor) -> Any:  # on the CPU it bypasses the dispatcher
            this._count += 1
            return whole(tensor)

        whole = torch.Tensor.tolist
        self._listening = contextlib.ExitStack()
        self._listening.enter_context(Mode())
        self._listening.enter_context(mock.patch.object(torch.Tensor, "tolist", tolist))

    def on_train_batch_end(self, *args: Any) -> None:
        """Save the count of a step."""
        self.counts.append(self._count)
        self._count = 0

    def on_train_end(self, *args: Any) -> None:
        """Stop counting."""
        self._listening.close()


class CountCollectives(Callback):
    """Records how many collectives Python starts in each step; DDP's own start in C++."""

    NAMES = ("broadcast", "all_reduce", "all_gather", "all_gather_object", "barrier")
    GATHERS = ("all_gather_into_tensor", "all_gather_single")

    def __init__(self, path: str) -> None:
        self.path, self.count = Path(path), 0
        self.counts: list[int] = []
        self.undo: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Wrap the functions in counters."""
        for name in (*self.NAMES, *self.GATHERS):
            original = getattr(torch.distributed, name, None)
            if original is not None:
                setattr(torch.distributed, name, self._counting(original))
                self.undo.append((name, original))

    def _counting(self, original: Any) -> Any:
        def counted(*args: Any, **settings: Any) -> Any:
            self.count += 1
            return original(*args, **settings)

        return counted

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Save the count of a step."""
        self.counts.append(self.count)
        self.count = 0

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the counters and write the counts."""
        for name, original in self.undo:
            setattr(torch.distributed, name, original)
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.counts), encoding="utf-8")


def quiet(counts: list[int]) -> list[int]:
    """Return the counts of steps without a log point; before the first one, the clocks agree more often."""
    return [count for step, count in enumerate(counts, 1) if step > LOG_EVERY and step % LOG_EVERY]


def reads(folder: Path) -> list[int]:
    """Return the host reads of each step of a run in this process."""
    counted = MuonAdamW.adamw

    def uncounted(*args: Any) -> None:
        CountReads.counting = False
        counted(*args)
        CountReads.counting = True

    record = "+callbacks.reads._target_=benchmarks.host_reads.CountReads"
    cfg = compose(
        *SMALL, "objective=lewm", "jepa.diagnostics.every=1000", record, *paths(folder, "one")
    )
    with (
        mock.patch.object(MuonAdamW, counted.__name__, uncounted),
        contextlib.redirect_stdout(sys.stderr),
    ):
        train(cfg)
    return CountReads.counts


def collectives(folder: Path) -> list[int]:
    """Return the collectives of each step of a run over two processes."""
    counter = "benchmarks.host_reads.CountCollectives"
    record = (f"+callbacks.count._target_={counter}", f"+callbacks.count.path={folder}/counts.json")
    cfg = compose(*SMALL, "trainer=ddp_sim", *record, *paths(folder, "two"))
    with contextlib.redirect_stdout(sys.stderr):
        train(cfg)
    return json.loads((folder / "counts.json").read_text(encoding="utf-8"))


def paths(folder: Path, name: str) -> tuple[str, str]:
    """Return the settings of the folders that a run writes to."""
    return f"paths.run_dir={folder / name}", f"paths.cache={folder / 'cache'}"


def claims() -> Iterator[Claim]:
    """Yield a claim for reads and one for collectives."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, counts, own in (
            ("reads", reads(folder), 0),
            ("collectives", collectives(folder), 1),
        ):
            assert all(counts[step - 1] > own for step in range(LOG_EVERY, STEPS, LOG_EVERY)), (
                counts
            )
            worst = max(quiet(counts)) - own
            yield at_most(
                f"host/{kind}",
                float(worst),
                unit="more than needed in a step between log points",
                target=0.0,
                limit=0.0,
                spread=0.0,
                details={"by_step": counts, "needed": own},
            )
