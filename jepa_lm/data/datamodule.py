"""The LightningDataModule: batches of `inputs` and `targets` [B, T] for each rank."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Subset

from jepa_lm.data.stream import Batch, TrainBatches
from jepa_lm.data.token_data import TokenData


class TokenDataModule(LightningDataModule):
    """What the Trainer reads of a run's data."""

    def __init__(self, data: TokenData) -> None:
        super().__init__()
        self.data = data

    def prepare_data(self) -> None:
        """Build or download the shards; runs on one process of each node."""
        self.data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open what `prepare_data` left on disk; runs on every process."""
        self.data.setup()

    def train_dataloader(self) -> TrainBatches:
        """Endless; starts where the restored run stopped, which the number of done steps tells."""
        trainer = self.trainer
        assert trainer is not None
        accumulate = trainer.accumulate_grad_batches
        order = self.data.order_of(trainer.global_rank, trainer.world_size, accumulate)
        first = trainer.global_step * accumulate
        # A DataLoader would only add its own steps: batches come ready from a memory map.
        return TrainBatches(self.data.streams["train"], order, first, pin=self._pin())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Each rank scores every W-th batch of windows."""
        assert self.trainer is not None
        windows = self.data.val_windows()
        mine = range(self.trainer.global_rank, len(windows), self.trainer.world_size)
        # Of its own generator, or a validation would move on the random numbers of training.
        own = torch.Generator()
        chosen = Subset(windows, mine)
        return DataLoader(chosen, batch_size=None, pin_memory=self._pin(), generator=own)

    def _pin(self) -> bool:
        assert self.trainer is not None
        return self.trainer.strategy.root_device.type == "cuda"
