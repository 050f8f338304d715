"""Writes checkpoints atomically and outside training time, and keeps the latest few.

Files are `checkpoints/step-N.ckpt`, and `last.ckpt` as a second name of the latest. A kill at any moment
leaves complete files, and at most one hidden temporary file, which the next run there removes.
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
from jepa_lm.utils.kinds import Count, checked
from jepa_lm.utils.trusted import Trust

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class AtomicCheckpointIO(TorchCheckpointIO):
    """Gives a checkpoint its name only once it is complete and on the disk.

    Args:
        trust: how far checkpoints are trusted when they are read.
    """

    def __init__(self, trust: Trust | None = None) -> None:
        super().__init__()
        self.trust = trust

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a temporary file beside the final name, then rename it.

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
                f"{path}: cannot be written ({error.strerror}; it needs {size:,} bytes); earlier "
                "checkpoints are unchanged"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the contents, on the CPU, through the project's only checkpoint reader."""
        return read_checkpoint(Path(path), self.trust)


class SaveCheckpoints(Checkpoint):
    """Saves checkpoints at an interval and whenever the run is about to end.

    A subclass of Lightning's `Checkpoint`, so that it is called after every other callback.

    Args:
        folder: of the checkpoints. every_n_steps: optimizer steps between checkpoints; None: only at the end.
        keep: number of checkpoints to keep.

    Raises:
        UserError: a number below 1.
    """

    @checked
    def __init__(self, *, folder: str, every_n_steps: Count | None, keep: Count) -> None:
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.newest: Path | None = None
        """Latest checkpoint of this run, or the one that it resumes from."""
        self._saved: tuple[int, str] | None = None
        """Step and name of the shipped weights of the last checkpoint that this run has written."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Make the folder, which marks the run as one to resume; remove a killed run's temporary files."""
        if trainer.ckpt_path:
            self.newest = Path(trainer.ckpt_path)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep_up(self.folder)

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        task: LanguageModelTask,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if due. The end is saved before its validation, which a kill may interrupt."""
        step = trainer.global_step
        if not task.ends_step(batch_idx):
            return
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if due or trainer.should_stop or step == trainer.max_steps:
            self.save(trainer, task)

    def save(self, trainer: Trainer, task: LanguageModelTask) -> None:
        """Save unless this step and choice are saved already. With several ranks, all must call it."""
        now = trainer.global_step, task.averages.shipped()
        if now == self._saved:
            return
        task.guard.look(trainer.global_step, _values(trainer, task))
        agree(task, 0.0)  # raises rather than save weights that are NaN or infinite
        with task.not_training():
            for logger in trainer.loggers:
                logger.save()  # a run that resumes here does not log earlier rows again
            path = self.folder / f"step-{trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                with held(path, self.folder) as again:
                    os.replace(again, self.folder / LAST_FILE)
                for old in _by_step(self.folder)[self.keep :]:
                    old.unlink(missing_ok=True)
        self.newest, self._saved = path, now


def _values(trainer: Trainer, task: LanguageModelTask) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a checkpoint will hold, by name."""
    yield from task.state_dict().items()
    names: dict[Tensor, str] = {parameter: name for name, parameter in task.named_parameters()}
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{key} of {names.get(parameter, 'a parameter')}", value


def _by_step(folder: Path) -> list[Path]:
    """Return the checkpoints, latest step first. File times do not order them: copying changes them."""
    named = ((SAVED.fullmatch(path.name), path) for path in folder.glob("step-*.ckpt"))
    found = [(int(match[1]), path) for match, path in named if match is not None]
    return [path for _, path in sorted(found, reverse=True)]
