"""Train with direct access to the trainer, and read what runs leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

from jepa_lm.commands import train as training
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.quantization.qat import FakeQuantizedWeights
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve


class Watch(Callback):
    """Keeps the loss of every micro-batch, gradients left after each step, and the number of steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.leftovers: list[str] = []
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.steps = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            optimizer = trainer.optimizers[0]
            optimizer.zero_grad()  # what the loop does before the next backward pass
            self.leftovers += [n for n, p in pl_module.named_parameters() if p.grad is not None]


def fit(cfg, watch: Watch | None = None, ckpt=None, clock=None) -> LanguageModelTask:
    """Train a config with direct access to the trainer; return the task."""

    config = resolve(cfg)
    pl.seed_everything(config["seed"], verbose=False)
    limits = config["trainer"]
    clock = clock or ProgressClock(max_steps=limits["max_steps"], max_time=limits["max_time"])
    task = LanguageModelTask(config, clock)
    data = TokenDataModule(instantiate(config["data"], _convert_="all"))
    trainer = training.make_trainer(config, task)
    if watch is not None:
        trainer.callbacks.append(watch)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return task


def only_losses_differ(small, settings: tuple[str, str], watch: type[Watch] = Watch) -> None:
    """Check of two settings, with weights that never change: other losses in training, the same score."""
    still = ("optimizer.freeze=[matrix,embedding]", "optimizer.groups.vectors.lr=0")
    losses, scores = [], []
    for setting in settings:
        seen = watch()
        task = fit(small(*still, "trainer.max_steps=2", setting), seen)
        losses.append(seen.losses)
        scores.append(task.scores["shipped"].bpb)
    assert len(losses[0]) == 2
    assert not set(losses[0]) & set(losses[1])
    assert scores[0] == scores[1]


def fake_quantized(task: LanguageModelTask) -> FakeQuantizedWeights:
    """Return the weights that the task's quantization-aware training would swap in."""
    return FakeQuantizedWeights(task.model, task.policy.training.formats(task.formats))


@contextmanager
def with_callback(
    callback: Callback, *, first: bool = False, when: Callable[[dict], bool] = lambda config: True
) -> Iterator[None]:
    """Give every Trainer made inside the block this callback, after the others unless `first`.

    Args:
        when: whether a run with this config gets it.
    """
    make = training.make_trainer

    def made(config, task):
        trainer = make(config, task)
        if when(config):
            trainer.callbacks.insert(0 if first else len(trainer.callbacks), callback)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_trainer", made)
        yield


def weights(path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def rows(run_dir) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder) -> dict[str, str]:
    """Return loss by step; a step logged twice must have been computed identically."""
    found: dict[str, str] = {}
    for row in rows(folder):
        if row["train/ce"]:
            assert found.setdefault(row["step"], row["train/ce"]) == row["train/ce"]
    return found


def state(folder, prefix: str = "") -> dict[str, torch.Tensor]:
    found = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return {n: t for n, t in found.items() if n.startswith(prefix)}


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def metrics(folder, column: str) -> list[float]:
    return [float(row[column]) for row in rows(folder) if row.get(column)]


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
