"""The LightningDataModule, which gives each rank batches of `inputs` and `targets` [B, T]."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Subset

from jepa_lm.data.stream import Batch, TrainBatches
from jepa_lm.data.token_data import TokenData


class TokenDataModule(LightningDataModule):
    """The data of a run as the Trainer reads it."""

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
        """Return endless batches; the number of finished steps says where a resumed run starts."""
        trainer = self.trainer
        assert trainer is not None
        accumulate = trainer.accumulate_grad_batches
        order = self.data.order_of(trainer.global_rank, trainer.world_size, accumulate)
        # A module of another program has no objectives.
        objectives: dict[str, Any] = getattr(trainer.lightning_module, "auxiliaries", {})
        if any(objective.placebo for objective in objectives.values()):
            order = self.data.with_related(order, speak=trainer.is_global_zero)
        first = trainer.global_step * accumulate
        # A DataLoader would only add overhead: batches come ready from a memory map.
        return TrainBatches(self.data.streams["train"], order, first, pin=self._pin())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the batches that this rank scores: every W-th of W ranks."""
        assert self.trainer is not None
        windows = self.data.split("val").windows()
        mine = range(self.trainer.global_rank, len(windows), self.trainer.world_size)
        # Its own generator, or a validation would advance the random numbers of training.
        own = torch.Generator()
        chosen = Subset(windows, mine)
        return DataLoader(chosen, batch_size=None, pin_memory=self._pin(), generator=own)

    def _pin(self) -> bool:
        assert self.trainer is not None
        return self.trainer.strategy.root_device.type == "cuda"
