"""Writes checkpoints: whole or not at all, outside training time, the newest few kept.

`checkpoints/step-N.ckpt`, and `last.ckpt` as another name of the newest. A kill at any moment leaves
the files that were complete, and at most one hidden temporary file, which the next run there sweeps up.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from jepa_lm.model.checkpoint import LAST_FILE, SAVED, read_checkpoint
from jepa_lm.training.agreement import agree
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import held, sweep_up, write_bytes
from jepa_lm.utils.trusted import Trust

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint gets its name when it is complete and on the disk.

    Args:
        trust: how far a checkpoint that is read is trusted.
    """

    def __init__(self, trust: Trust | None = None) -> None:
        super().__init__()
        self.trust = trust

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write beside the final name, then rename.

        Raises:
            UserError: the disk is full or the folder cannot be written to.
            OSError: the run's folder is gone.
        """
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path.parent.mkdir(exist_ok=True)  # but not the run's folder, if that is gone
        try:
            write_bytes(path, buffer.getbuffer())
        except OSError as error:
            size = buffer.getbuffer().nbytes
            raise UserError(
                f"{path}: cannot be written ({error.strerror}; it takes {size:,} bytes); earlier "
                "checkpoints are as they were"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What is in it, on the CPU, by the one reader that there is."""
        return read_checkpoint(Path(path), self.trust)


class SaveCheckpoints(Checkpoint):
    """Saves on its interval and whenever the run is about to end.

    A subclass of Lightning's `Checkpoint`, so that it comes after every other callback.

    Args:
        folder: where to. every_n_steps: optimizer steps between checkpoints; None: only at the end.
        keep: how many stay.

    Raises:
        UserError: a number below 1.
    """

    def __init__(self, *, folder: str, every_n_steps: int | None, keep: int) -> None:
        for key, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value is not None and value < 1:
                raise UserError(f"checkpoint.{key}={value}: at least 1")
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.newest: Path | None = None
        """Of this run, or the one that it goes on from."""
        self._saved: tuple[int, str] | None = None
        """Step and shipped weights of the newest one that this run has written."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Make the folder: from now on this is a run that can be resumed."""
        if trainer.ckpt_path:
            self.newest = Path(trainer.ckpt_path)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep_up(self.folder)  # after a run that was killed while it wrote

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        task: LanguageModelTask,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is time. An end is saved before its validation, which a kill may cut off."""
        step = trainer.global_step
        if not task.ends_step(batch_idx):
            return
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if due or trainer.should_stop or step == trainer.max_steps:
            self.save(trainer, task)

    def save(self, trainer: Trainer, task: LanguageModelTask) -> None:
        """Save now what is not saved yet. With several ranks, all of them have to call it."""
        now = trainer.global_step, task.averages.shipped()
        if now == self._saved:
            return
        task.guard.look(trainer.global_step, _values(trainer, task))
        agree(task, 0.0)  # no checkpoint of weights that are no numbers
        with task.not_training():
            for logger in trainer.loggers:
                logger.save()  # rows up to here will not be written again
            path = self.folder / f"step-{trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                with held(path, self.folder) as again:
                    os.replace(again, self.folder / LAST_FILE)
                for old in _by_step(self.folder)[self.keep :]:
                    old.unlink(missing_ok=True)
        self.newest, self._saved = path, now


def _values(trainer: Trainer, task: LanguageModelTask) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint will hold, by name."""
    yield from task.state_dict().items()
    names: dict[Tensor, str] = {parameter: name for name, parameter in task.named_parameters()}
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{key} of {names.get(parameter, 'a parameter')}", value


def _by_step(folder: Path) -> list[Path]:
    """Our own checkpoints, the newest first. Times of files say when somebody copied them."""
    named = ((SAVED.fullmatch(path.name), path) for path in folder.glob("step-*.ckpt"))
    found = [(int(match[1]), path) for match, path in named if match is not None]
    return [path for _, path in sorted(found, reverse=True)]
