"""Claim 1: overhead of `train(cfg)` per step over a bare loop.

Both train the same tiny model on the same batches with the same optimizer and schedule. The bare loop runs
inside the fit: the fit's data yields SEGMENT batches, then the bare loop trains for as many steps, and so on,
so that segments alternate bare/fit/bare/fit in one process. The fit's time runs from one batch to the one
SEGMENT batches later, so it includes all parts of a step. One thread is used: the overhead is Python's, and
waiting threads would only hide it.

The details give the overhead of Lightning alone on the same machine: the smallest module in automatic mode,
without logger, callbacks and checkpoints.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.measure import Claim, aa_spread, at_most
from benchmarks.models import compose
from jepa_lm.commands import train as training
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.data.stream import Batch, TrainBatches, make_order
from jepa_lm.data.token_data import TokenData
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.precision import AUTOCAST

SEGMENT = 100
"""Steps of the fit between two bare segments: five logging intervals, one flush of metrics.csv."""
ROUNDS = 30
CHECKED_STEPS = 40
NEVER = 10**9

TINY = (
    "data=bytes256",
    "data.seq_len=32",
    "data.batch_tokens=64",
    "model.dim=32",
    "model.backbone.layers=1",
    "model.backbone.xsa_last=0",
    "model.backbone.rope_dims=0",
    "model.backbone.heads=2",
    "model.backbone.kv_heads=1",
    "model.bigram.buckets=128",
    "optimizer.groups.matrices.ns_dtype=float32",
    "trainer.precision=32-true",
    "trainer.limit_val_batches=0",
    "sample=false",
)
"""Steps of a few milliseconds, so that tenths are visible; all callbacks and metrics.csv are on."""


class BareLoop:
    """A copy of a task at its first step, trained without a framework."""

    def __init__(self, task: LanguageModelTask, batches: Iterator[Batch], max_steps: int) -> None:
        self.clock = ProgressClock(max_steps=max_steps, max_time=None)
        twin = LanguageModelTask(task.config, self.clock)
        self.model, self.batches = twin.model, batches
        self.model.load_state_dict(task.model.state_dict())
        self.optimizer, self.scheduler = twin.recipe.configure(twin, self.clock)
        self.dtype = AUTOCAST[task.config["trainer"]["precision"]]
        self.losses: list[Tensor] = []

    def run(self, steps: int) -> None:
        """Train for this many steps."""
        for _ in range(steps):
            batch = next(self.batches)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                hidden = self.model.encode(self.model.embed(batch["inputs"])).final
                loss = self.model.cross_entropy(hidden, batch["targets"], 0.0).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.clock.advance()
            self.scheduler.step()
            self.losses.append(loss.detach())


class InterleavedData(TokenDataModule):
    """A run's data that trains the bare loop between segments of the fit and times both."""

    segment: ClassVar[int]
    latest: ClassVar[InterleavedData]
    """Data of the latest run."""

    def train_dataloader(self) -> Any:
        """Return the run's batches; the bare loop gets its own from the same shards."""
        type(self).latest = self
        trainer = self.trainer
        assert trainer is not None
        order = make_order(
            self.data.order,
            tokens=self.data.batch_tokens,
            seq_len=self.data.seq_len,
            rank=0,
            world_size=1,
            seed=self.data.seed,
        )
        batches = iter(TrainBatches(self.data.streams["train"], order, 0))
        self.bare = BareLoop(trainer.lightning_module, batches, trainer.max_steps)  # type: ignore[arg-type]
        self.fit_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        """One more than for the fit: before and after each of its segments."""
        return _Interleaved(super().train_dataloader(), self)

    def switch(self, resumed: float | None) -> float:
        """Train the bare loop after a segment of the fit; return the time at which the fit resumes."""
        began = time.perf_counter()
        if resumed is not None:
            self.fit_seconds.append(began - resumed)
        self.bare.run(self.segment)
        ended = time.perf_counter()
        self.bare_seconds.append(ended - began)
        return ended


class _Interleaved:
    """Batches that switch to the bare loop before each segment."""

    def __init__(self, batches: Iterable[Batch], data: InterleavedData) -> None:
        self.batches, self.data = batches, data

    def __iter__(self) -> Iterator[Batch]:
        resumed = None
        for index, batch in enumerate(self.batches):
            if index % self.data.segment == 0:
                resumed = self.data.switch(resumed)
            yield batch


class Losses(Callback):
    """Keeps every loss of the fit."""

    latest: ClassVar[list[Tensor]]

    def on_train_start(self, *args: Any) -> None:
        """Start a new list."""
        type(self).latest = []

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, *args: Any) -> None:
        """Keep the step's loss."""
        self.latest.append(outputs["loss"])


def run_pair(
    folder: Path, *extra: str, segment: int, rounds: int, log_every: int
) -> InterleavedData:
    """Train with `train(cfg)` and with the bare loop in turns."""
    InterleavedData.segment = segment
    cfg = compose(
        *TINY,
        f"paths.run_dir={folder / f'run_{log_every}_{rounds}'}",
        f"paths.cache={folder / 'cache'}",
        f"trainer.max_steps={segment * rounds + 1}",
        f"trainer.log_every_n_steps={log_every}",
        *extra,
    )
    module = patch.object(training, "TokenDataModule", InterleavedData)
    with contextlib.redirect_stdout(sys.stderr), module:
        training.train(cfg)
    return InterleavedData.latest


class PlainTask(LightningModule):
    """The same model, loss, optimizer and schedule, without any other part of this framework."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.clock = ProgressClock(max_steps=config["trainer"]["max_steps"], max_time=None)
        task = LanguageModelTask(config, self.clock)
        self.model = task.model
        self.configured = task.recipe.configure(task, self.clock)

    def configure_optimizers(self) -> Any:
        """Return the same optimizer and scheduler as in the run."""
        optimizer, scheduler = self.configured
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the same loss as in the bare loop."""
        self.clock.advance()
        hidden = self.model.encode(self.model.embed(batch["inputs"])).final
        return self.model.cross_entropy(hidden, batch["targets"], 0.0).loss


def run_lightning_alone(
    folder: Path, *callbacks: Callback, segment: int, rounds: int
) -> InterleavedData:
    """Train `PlainTask` with Lightning's own loop and with the bare loop in turns."""
    InterleavedData.segment = segment
    steps = segment * rounds + 1
    paths = (f"paths.run_dir={folder / 'alone'}", f"paths.cache={folder / 'cache'}")
    config = resolve(compose(*TINY, *paths, f"trainer.max_steps={steps}"))
    data: TokenData = instantiate(config["data"], _convert_="all")
    data.prepare_data()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    trainer.fit(PlainTask(config), datamodule=InterleavedData(data))
    return InterleavedData.latest


def check_losses(folder: Path) -> None:
    """Check that the fit, Lightning alone and the bare loop give bit-identical losses."""
    record = "+callbacks.losses._target_=benchmarks.trainer_overhead.Losses"
    sizes = {"segment": CHECKED_STEPS // 4, "rounds": 4}
    for trained in (
        lambda: run_pair(folder, record, log_every=5, **sizes),
        lambda: run_lightning_alone(folder, Losses(), **sizes),
    ):
        bare_losses = trained().bare.losses
        fit, bare = (torch.stack(x[:CHECKED_STEPS]) for x in (Losses.latest, bare_losses))
        assert len(fit) == len(bare) == CHECKED_STEPS
        assert fit[-10:].mean() < fit[:10].mean(), "nothing was learned"
        torch.testing.assert_close(fit, bare, rtol=0, atol=0)


def extra(data: InterleavedData) -> tuple[float, float, dict[str, float]]:
    """Return the extra milliseconds per step, the A/A spread and the timings, without the warm-up round."""
    scale = 1000 / data.segment
    bare = [scale * value for value in data.bare_seconds[1:]]
    fit = [scale * value for value in data.fit_seconds[1:]]
    before, after = bare[: len(fit)], bare[1:][: len(fit)]
    found = [f - (a + b) / 2 for f, a, b in zip(fit, before, after, strict=True)]
    timed = {"fit_ms": statistics.median(fit), "bare_ms": statistics.median(bare)}
    counts = {"segments": len(fit), "steps_per_segment": data.segment}
    return statistics.median(found), aa_spread(before, after), {**timed, **counts}


def claims() -> Iterator[Claim]:
    """Yield a claim without logging, and one with logging every 20 steps, the default."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_losses(folder)
        alone, _, _ = extra(run_lightning_alone(folder, segment=SEGMENT, rounds=ROUNDS))
        for kind, target, log_every in (
            ("no_logging", 0.40, NEVER),
            ("interval_logging", 0.50, 20),
        ):
            data = run_pair(folder, segment=SEGMENT, rounds=ROUNDS, log_every=log_every)
            value, spread, details = extra(data)
            yield at_most(
                f"trainer_overhead/{kind}",
                value,
                unit="ms per step",
                target=target,
                limit=0.0,
                spread=spread,
                details=details | {"lightning_alone_ms": alone},
            )
